# SPDX-License-Identifier: GPL-2.0-or-later
"""What the verdict says of a whole migration is what each host's QEMU does with the stream, kernel and all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from qmpfilter.filter.carrier import Carrier
from qmpfilter.layout import Layout
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.judge import Outcome, judge_stream
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DeviceSection
from tests.helpers import build
from tests.helpers.convert import converted
from tests.helpers.fixtures import fixtures
from tests.helpers.parse import parse
from tests.helpers.vcpus import sections_of
from tests.lab.differential import host_facts
from tests.lab.emulator import EmulatedHost
from tests.lab.guest.build import build_guest

pytestmark = pytest.mark.lab

SECONDS = 900.0
# Of a machine type that every host has.
SOURCE = next(fixture for fixture in fixtures() if fixture.name == "old-common-type")
STREAM = SOURCE.file("stream")
SMM = cpu.HF_SMM


@dataclass(frozen=True)
class Trial:
    """A stream, and features taken from the guest."""

    stream: bytes
    without: tuple[str, ...] = ()


def _first_vcpu(stream: bytes) -> DeviceSection:
    return next(
        event for event in parse(stream).events if isinstance(event, DeviceSection) and event.idstr == cpu.IDSTR
    )


def _edited(change: Callable[[DeviceSection, bytearray], None]) -> bytes:
    """The stream with something changed in its first vCPU's section, whose length may change."""
    section = _first_vcpu(STREAM)
    raw = bytearray(section.raw)
    change(section, raw)
    return STREAM[: section.offset] + raw + STREAM[section.offset + len(section.raw) :]


def _register(name: str, change: Callable[[int], int]) -> bytes:
    def edit(section: DeviceSection, raw: bytearray) -> None:
        cpu.BLOCK.put(raw, name, change(cpu.BLOCK.get(raw, name, section.body)), section.body)

    return _edited(edit)


def _envelope(**fields: int) -> bytes:
    def edit(section: DeviceSection, raw: bytearray) -> None:
        at = next(sub for sub in section.subsections if sub.name == cpu.NESTED_STATE.name).payload
        for name, value in fields.items():
            cpu.NESTED_STATE.layout.put(raw, name, value, at)

    return _edited(edit)


def _page(layout: Layout, name: str, value: int, base: int = 0) -> bytes:
    def edit(section: DeviceSection, raw: bytearray) -> None:
        nested = next(sub for sub in section.subsections if sub.name == cpu.NESTED_STATE.name)
        at = nested.children[0].payload + cpu.NESTED_STATE_SVM.layout.offset("vmcb12")
        layout.put(raw, name, value, at + base)

    return _edited(edit)


def _with_subsection(name: str, payload: bytes) -> bytes:
    def edit(section: DeviceSection, raw: bytearray) -> None:
        end = section.body + cpu.BLOCK.size
        raw[end:end] = build.subsection(name, payload)

    return _edited(edit)


TRIALS = {
    "unchanged": Trial(STREAM),
    "annex": Trial(converted(STREAM, Carrier.ANNEX)),
    "native": Trial(converted(STREAM, Carrier.NATIVE)),
    "no-svm": Trial(STREAM, without=("SVM",)),
    "no-npt": Trial(STREAM, without=("NPT",)),
    "size-header": Trial(_envelope(size=0x40)),
    "size-capability": Trial(_envelope(size=0x2080)),
    "size-page": Trial(_envelope(size=0x80)),
    "format-unknown": Trial(_envelope(format=2)),
    "format-vmx": Trial(_envelope(format=0)),
    "flags": Trial(_envelope(flags=0x109)),
    "guest-mode-inconsistent": Trial(_envelope(flags=0x100)),
    "run-pending": Trial(_envelope(flags=0x103)),
    "gif-from-hflags2": Trial(_register("hflags2", lambda value: value & ~cpu.HF2_GIF)),
    "smm": Trial(_register("hflags", lambda value: value | SMM)),
    "sregs-cr4": Trial(_register("cr4", lambda value: value | 1 << 31)),
    "sregs-efer": Trial(_register("efer", lambda value: value | 1 << 40)),
    "asid": Trial(_page(CONTROL, "asid", 0)),
    "event-inj-type": Trial(_page(CONTROL, "event_inj", 0x8000_0100)),
    "l1-cs": Trial(_page(SAVE, "cs_attrib", 0xE9B, SAVE_OFFSET)),
    "pdptrs-without-pae": Trial(_with_subsection("cpu/pdptrs", bytes(32))),
    "error-code": Trial(_with_subsection("cpu/error_code", bytes(4))),
}


@pytest.fixture(scope="module")
def facts(emulated_host: EmulatedHost) -> HostFacts:
    """What the verdict is told of the host."""
    return host_facts(emulated_host)


@pytest.fixture(scope="module")
def loaded(emulated_host: EmulatedHost) -> dict[str, dict[str, Any]]:
    """What became of each trial."""
    spec = {name: _command_line(trial) for name, trial in TRIALS.items()}
    files = {name: trial.stream for name, trial in TRIALS.items()}
    files |= {"l1.elf": build_guest().elf, "spec.json": json.dumps(spec).encode()}
    left = emulated_host.run(["python3", "-m", "inhost.loading", "spec.json"], files, SECONDS).files
    found: dict[str, dict[str, Any]] = json.loads(left["loaded.json"])
    return found


def _command_line(trial: Trial) -> list[str]:
    arguments = list(SOURCE.facts["command line"])
    model = arguments.index("-cpu") + 1
    arguments[model] = ",".join([arguments[model], *(f"-{name.lower()}" for name in trial.without)])
    return arguments


@pytest.mark.parametrize("name", TRIALS)
def test_qemu_does_what_the_verdict_says(facts: HostFacts, loaded: dict[str, dict[str, Any]], name: str) -> None:
    trial = TRIALS[name]
    assert facts.supported_cpuid is not None
    if trial.without:
        facts = replace(facts, guest_cpuid=facts.supported_cpuid.changed(without=trial.without))
    verdict = judge_stream(sections_of(trial.stream), facts)
    assert verdict.outcome is not Outcome.UNKNOWN
    silent = any(one.outcome is Outcome.REFUSED and one.silent for one in verdict.vcpus.values())
    expected = "ended" if verdict.outcome is Outcome.REFUSED and not silent else "loaded"
    found = loaded[name]
    assert ("loaded" if "status" in found else "ended") == expected, (verdict, found)
