# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU carries svm2 between kernels that speak it and kernels that do not, and L2 goes on each time."""

from __future__ import annotations

import json
from random import Random

import pytest

from qmpfilter.filter.carrier import Carrier
from qmpfilter.svm import annex
from qmpfilter.svm.svm2 import Svm2Flags, Svm2State, Validity
from qmpfilter.svm.vmcb import SAVE
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DeviceSection
from tests.helpers.convert import converted
from tests.helpers.fixtures import Fixture, fixtures
from tests.helpers.parse import parse
from tests.helpers.vcpus import vcpus_in_l2
from tests.lab.arriving import arrive
from tests.lab.emulator import EmulatedHost, JobFailed
from tests.lab.test_relay_nested import Way, travel

pytestmark = pytest.mark.lab

#: Each svm2 host sent one; what arrives at a host is another one's.
SENT = {fixture.facts["host"]: fixture for fixture in fixtures(svm2=True)}
OTHERS = {"mid-svm2": "new-svm2", "new-svm2": "mid-svm2", "old": "mid-svm2", "mid": "new-svm2", "new": "mid-svm2"}
LEGACY = next(fixture for fixture in fixtures() if fixture.name == "mid-common-type")
#: Seconds in which an L2 that was restored has long printed something.
PATIENCE = 15.0
#: The vCPU of the guest whose L2 has a DR7 that the source's registers do not tell.
UNTOLD = 2
DR7_OF_L1, DR7_OF_L2 = 0x500, 0x700


def sent_to(host: EmulatedHost) -> Fixture:
    return SENT[OTHERS[host.host.name]]


def records(stream: bytes) -> dict[int, Svm2State]:
    """By vCPU."""
    found = {}
    for vcpu in vcpus_in_l2(stream):
        nested = vcpu.nested
        assert nested is not None
        assert nested.page is not None
        record = annex.decode(nested.page, nested.vmcb_pa, run_pending=nested.run_pending, gif=nested.gif)
        if record is not None:
            found[vcpu.index] = record
    return found


def dr7(state: Svm2State) -> int:
    return SAVE.get(state.vmcb12_save, "dr7")


def section_dr7(stream: bytes) -> list[int]:
    return [cpu.BLOCK.get(vcpu.block, "dr7") for vcpu in vcpus_in_l2(stream)]


def scrambled(stream: bytes) -> bytes:
    """All of L2 that QEMU does not load again after the nested state, made something else in the sections."""
    random = Random(7)
    result = bytearray(stream)
    for event in parse(stream).events:
        if isinstance(event, DeviceSection) and event.idstr == cpu.IDSTR:
            at = event.offset + event.body
            for name, value in _scrambled_registers(random).items():
                cpu.BLOCK.put(result, name, value, at)
    return bytes(result)


def _scrambled_registers(random: Random) -> dict[str, int]:
    """Such as KVM_SET_SREGS2 takes: a long mode with SVME, segments of the right kind."""
    values = {"cr0": 0x8000_0031, "cr2": random.getrandbits(64), "cr3": 0x5000, "cr4": 0x20, "efer": 0x1D00}
    kinds = {"cs": 0xA09B00, "tr": 0x8B00, "ldt": 0x8200}
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "tr", "ldt"):
        values |= {
            f"{name}_selector": random.getrandbits(13) << 3,
            f"{name}_base": random.getrandbits(32),
            f"{name}_limit": 0xFFFFF,
            f"{name}_flags": kinds.get(name, 0xC09300),
        }
    for name in ("gdt", "idt"):
        values |= {f"{name}_base": random.getrandbits(32), f"{name}_limit": random.getrandbits(16)}
    return values


# --- a kernel that speaks svm2 -----------------------------------------------------------------


def test_what_is_scrambled_is_all_but_what_qemu_loads_later() -> None:
    stream = SENT["mid-svm2"].file("stream")
    for before, after in zip(vcpus_in_l2(stream), vcpus_in_l2(scrambled(stream)), strict=True):
        spans = {name: cpu.BLOCK.span(name) for name in cpu.BLOCK.fields}
        same = {name for name, span in spans.items() if before.block[span] == after.block[span]}
        changed = set(cpu.BLOCK.fields) - same
        assert {"cr3", "cs_base", "ss_selector", "tr_base", "gdt_base", "idt_limit", "cr2"} <= changed
        assert {"rip", "rax", "star", "dr7"} <= same
        assert before.nested == after.nested


def test_a_legacy_host_sends_through_a_filter(svm2_host: EmulatedHost) -> None:
    stream = converted(LEGACY.file("stream"), Carrier.ANNEX)
    _, again = arrive(svm2_host, LEGACY, stream)
    given, sent = records(stream), records(again)
    assert given.keys() == sent.keys() == {0, 1}
    for index, state in sent.items():
        assert state.flags == Svm2Flags.AUTHORITATIVE
        assert Validity.DR7 in state.validity
        assert (state.vmcb_pa, state.l1_visible) == (given[index].vmcb_pa, given[index].l1_visible)
        assert state.vmcb12_control == given[index].vmcb12_control or svm2_host.host.name == "new-svm2"


def test_without_a_filter_qemu_undoes_what_the_record_knows_of_dr7(svm2_host: EmulatedHost) -> None:
    source = sent_to(svm2_host)
    stream = source.file("stream")
    assert section_dr7(stream)[UNTOLD] == DR7_OF_L1
    assert dr7(records(stream)[UNTOLD]) == DR7_OF_L2
    _, again = arrive(svm2_host, source, stream)
    for index, state in records(stream).items():
        there = records(again)[index]
        expected = bytearray(state.vmcb12_save)
        if index == UNTOLD:
            SAVE.put(expected, "dr7", DR7_OF_L1)
        assert there.vmcb12_save == expected


def test_l2_comes_from_the_record_and_dr7_too_with_a_filter(svm2_host: EmulatedHost) -> None:
    source = sent_to(svm2_host)
    corrected = converted(source.file("stream"), Carrier.ANNEX)
    assert section_dr7(corrected)[UNTOLD] == DR7_OF_L2
    _, again = arrive(svm2_host, source, scrambled(corrected))
    for index, state in records(source.file("stream")).items():
        assert records(again)[index].vmcb12_save == state.vmcb12_save


def test_the_relay_keeps_dr7_in_a_live_migration(svm2_host: EmulatedHost) -> None:
    left = travel(svm2_host, Way("annex", vcpus="2d"))
    report = json.loads(left["report1.json"])
    assert (report["outcome"], report["reason"]) == ("completed", "")
    there = records(left["stream1"])
    assert dr7(there[1]) == DR7_OF_L2
    assert section_dr7(left["stream1"]) == [dr7(there[index]) for index in sorted(there)]


def test_the_log_is_free_of_warnings(svm2_host: EmulatedHost) -> None:
    log = svm2_host.run(["dmesg"], {}, 60.0).output
    assert "kvm_amd" in log or "SVM" in log
    assert [
        line for line in log.splitlines() if any(word in line for word in ("cut here", "Call Trace", "BUG:", "Oops"))
    ] == []


# --- a kernel that does not --------------------------------------------------------------------


def test_a_legacy_host_ignores_a_record(emulated_host: EmulatedHost) -> None:
    source = sent_to(emulated_host)
    _, again = arrive(emulated_host, source, source.file("stream"))
    assert records(again) == {}
    # So L2's own is lost.
    assert section_dr7(again)[UNTOLD] == DR7_OF_L1
    assert len(list(vcpus_in_l2(again))) == len(records(source.file("stream")))


def test_a_legacy_host_takes_what_a_filter_made_legacy(emulated_host: EmulatedHost) -> None:
    source = sent_to(emulated_host)
    stream = converted(source.file("stream"), Carrier.LEGACY)
    assert records(stream) == {}
    assert section_dr7(stream)[UNTOLD] == DR7_OF_L2
    _, again = arrive(emulated_host, source, stream)
    assert section_dr7(again) == section_dr7(stream)


def test_a_legacy_host_needs_the_section(emulated_host: EmulatedHost) -> None:
    source = sent_to(emulated_host)
    with pytest.raises(JobFailed, match=r"progress of the guest|the guest says"):
        arrive(emulated_host, source, scrambled(source.file("stream")), patience=PATIENCE)
