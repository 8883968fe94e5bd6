# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of a host survive their file, and a damaged or foreign file is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qmpfilter.errors import HostError
from qmpfilter.verdict.cpuid import Cpuid, CpuidRow
from qmpfilter.verdict.facts import SCHEMA, HostFacts, QemuBinary
from qmpfilter.verdict.version import Version

FACTS = HostFacts(
    kernel_release="6.1.0-56-cloud-amd64",
    kernel=Version(6, 1, 192),
    kernel_package="6.1.192-2",
    parameters={"kvm_amd": {"nested": "1", "npt": "Y", "avic": "N", "pause_filter_count": "3000"}},
    nested_state_size=4224,
    quirks=0x7FF,
    supported_cpuid=Cpuid((CpuidRow(7, 1, 1, 2, 3, 4, 0xFFFF_FFFF),)),
    qemu=(QemuBinary("/usr/bin/qemu-system-x86_64", Version(7, 2, 22)), QemuBinary("/opt/qemu", None)),
    formats=("legacy", "annex"),
)


@pytest.mark.parametrize("facts", [FACTS, HostFacts()], ids=["all", "none"])
def test_file_holds_all_facts_of_the_host(facts: HostFacts) -> None:
    assert HostFacts.from_json(json.dumps(facts.to_json())) == facts


def test_parameters_that_are_flags() -> None:
    assert (FACTS.nested, FACTS.npt, FACTS.flag("kvm_amd", "avic")) == (True, True, False)
    assert FACTS.flag("kvm_amd", "pause_filter_count") is FACTS.flag("kvm", "nothing") is None


def test_qemu_that_would_be_used_first() -> None:
    assert FACTS.qemu_version == Version(7, 2, 22)
    assert HostFacts().qemu_version is None


def test_newer_file_of_the_schema_can_be_read() -> None:
    assert HostFacts.from_json(json.dumps({"schema": SCHEMA, "news": [1], "kvm": {"more": 1}})) == HostFacts()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "no JSON"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "the whole file: expected an object"),
        ("{}", "no schema"),
        ('{"schema": "other/1"}', "of schema 'other/1'"),
        ('{"schema": 1}', "schema: expected a text, found 1"),
    ],
)
def test_foreign_file_is_told(text: str | bytes, message: str) -> None:
    with pytest.raises(HostError, match=message):
        HostFacts.from_json(text)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("kernel",), 1, "kernel: expected an object, found 1"),
        (("kernel", "version"), "new", 'kernel.version: expected a version, found "new"'),
        (("kernel", "release"), ["a" * 100], r"kernel\.release: expected a text, found .{40} \.\.\."),
        (("kvm", "nested_state_size"), -1, "nested_state_size: expected a number"),
        (("kvm", "quirks"), True, "quirks: expected a number"),
        (("kvm", "parameters", "kvm_amd", "npt"), 1, "parameters.kvm_amd.npt: expected a text"),
        (("cpu", "supported_cpuid"), {}, "supported_cpuid: expected a list"),
        (("cpu", "supported_cpuid"), {"a": 1}, "supported_cpuid: expected a list"),
        (("cpu", "supported_cpuid"), [{"function": 1}], r"supported_cpuid\[0\].eax: expected a number"),
        (("cpu", "supported_cpuid"), [{"function": 1 << 32}], r"supported_cpuid\[0\].function: expected a number"),
        (("qemu",), [{"path": None}], r"qemu\[0\].path: expected a text, found null"),
        (("formats",), ["legacy", 1], "formats: expected a list of texts"),
    ],
)
def test_damage_is_told_with_its_place(path: tuple[str, ...], value: Any, message: str) -> None:
    whole = FACTS.to_json()
    inner = whole
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(HostError, match=message):
        HostFacts.from_json(json.dumps(whole))
