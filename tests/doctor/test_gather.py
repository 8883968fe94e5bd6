# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts from files and programs, and their way to the verdict as JSON."""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path

import pytest

from qmpfilter.doctor.gather import Device, ask_kvm, gather
from qmpfilter.doctor.programs import ask_version, present
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.version import Version
from tests.doctor.roots import DEBIAN, NESTING, PROXMOX, QEMU, RHEL, UBUNTU, Host

SECONDS = 10.0
HOSTS = {"Debian": Host(), "nothing": Host(None, None, None, "", {}, Device(2), {})}


def _program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", HOSTS)
def test_facts_survive_json(name: str, tmp_path: Path) -> None:
    facts = HOSTS[name].survey(tmp_path).facts
    assert HostFacts.from_json(json.dumps(facts.to_json())) == facts


def test_facts_of_a_debian_host(tmp_path: Path) -> None:
    survey = Host().survey(tmp_path)
    facts = survey.facts
    assert facts.kernel_release == "6.1.0-56-cloud-amd64"
    assert facts.kernel == Version(6, 1, 192)
    assert facts.parameters == {"kvm": {"tdp_mmu": "Y"}, "kvm_amd": {"nested": "1", "npt": "Y"}}
    assert (facts.nested, facts.npt) == (True, True)
    assert facts.supported_cpuid == NESTING.supported_cpuid
    assert (facts.nested_state_size, facts.quirks) == (4224, 0xFF)
    assert [(binary.path, binary.version) for binary in facts.qemu] == [(f"{tmp_path}/{QEMU}", Version(10, 2, 2))]
    assert facts.formats == ("legacy", "annex")
    assert survey.libvirt == Version(11, 3, 0)


@pytest.mark.parametrize(
    ("kernel", "signature", "package"),
    [
        (DEBIAN, None, "6.1.192-2"),
        (PROXMOX, None, "6.8.12-1"),
        (UBUNTU, "Ubuntu 6.8.0-45.45-generic 6.8.12", "6.8.0-45.45-generic"),
        (RHEL, None, None),
    ],
)
def test_package_of_the_kernel(
    kernel: tuple[str, str], signature: str | None, package: str | None, tmp_path: Path
) -> None:
    assert Host(kernel=kernel, signature=signature).survey(tmp_path).facts.kernel_package == package


@pytest.mark.parametrize(
    ("parameter", "device", "formats"),
    [
        ({}, NESTING, ("legacy", "annex")),
        ({"svm2": "Y"}, NESTING, ("legacy", "annex", "svm2")),
        ({"svm2": "N"}, NESTING, ("legacy", "annex")),
        ({"svm2": "Y"}, Device(13), ()),
        ({}, Device(None, 8320, 0, NESTING.supported_cpuid), ()),
    ],
)
def test_formats(parameter: dict[str, str], device: Device, formats: tuple[str, ...], tmp_path: Path) -> None:
    modules = {"kvm_amd": {"nested": "1", **parameter}}
    assert Host(modules=modules, device=device).survey(tmp_path).facts.formats == formats


def test_named_qemu_comes_first_and_a_link_is_no_second_one(tmp_path: Path) -> None:
    own = _program(tmp_path / "own-qemu", "echo QEMU emulator version 11.1.3")
    host = Host()
    host.survey(tmp_path)
    (tmp_path / "usr/bin/qemu-kvm").symlink_to("qemu-system-x86_64")
    facts = gather(tmp_path, device=lambda: NESTING, qemu=[own]).facts
    assert [binary.path for binary in facts.qemu] == [str(own), f"{tmp_path}/{QEMU}"]
    assert facts.qemu_version == Version(11, 1, 3)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo; echo version 2", (True, "")),
        ("echo one; echo two", (True, "one")),
        ("exit 4", (False, "it ended with status 4")),
        ("kill -SEGV $$", (False, "it was killed by signal 11")),
        ("true", (False, "it says nothing")),
        ("printf '\\377\\n'", (True, "\ufffd")),
    ],
)
def test_what_programs_say(script: str, expected: tuple[bool, str], tmp_path: Path) -> None:
    assert ask_version(_program(tmp_path / "program", script)) == expected


def test_program_of_another_machine(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF but not really")
    program.chmod(0o755)
    assert ask_version(program) == (False, "it cannot be run: Exec format error")


def test_program_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lives")
    reading = os.open(tmp_path / "lives", os.O_RDONLY | os.O_NONBLOCK)
    hanging = _program(tmp_path / "program", f"exec 3>{tmp_path}/lives; echo begun >&3; sleep 60 & sleep 60")
    with open(reading, "rb", buffering=0) as lives:
        # On a busy machine it may be over before it began.
        for seconds in (0.5, 5.0, 50.0):
            started = time.monotonic()
            assert ask_version(hanging, seconds) == (False, f"it did not answer within {seconds:g} s")
            assert time.monotonic() - started < seconds + SECONDS
            if select.select([lives], [], [], 0)[0]:
                break
        assert lives.read(100) == b"begun\n"
        os.set_blocking(reading, True)
        # The end comes when nobody has it open any more.
        assert select.select([lives], [], [], SECONDS)[0]
        assert lives.read(100) == b""


def test_present_passes_over_what_is_not_there(tmp_path: Path) -> None:
    there = _program(tmp_path / "there", "true")
    (tmp_path / "directory").mkdir()
    (tmp_path / "broken").symlink_to("nowhere")
    assert present([tmp_path / name for name in ("absent", "directory", "broken", "there", "there")]) == [there]


def test_this_machine_is_asked_without_an_exception() -> None:
    device = ask_kvm()
    assert (device.error is None) == (device.supported_cpuid is not None)
