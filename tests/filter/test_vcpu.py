# SPDX-License-Identifier: GPL-2.0-or-later
"""What is decided for one vCPU, and that what comes out of it means what was meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from qmpfilter.errors import RecordError, RefusedError
from qmpfilter.filter.carrier import Carrier, carried
from qmpfilter.filter.vcpu import Decision, Outcome, decide
from qmpfilter.svm import annex
from qmpfilter.svm.convert import to_svm2
from qmpfilter.svm.section import CpuSection
from qmpfilter.svm.svm2 import Producer, Svm2Flags, Svm2State, Validity
from qmpfilter.svm.vmcb import CONTROL, SAVE
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DeviceSection
from tests.filter.sections import annexed, good, legacy, natively, stream, vcpu
from tests.helpers.build import Device, Vmsd, field
from tests.helpers.convert import converted
from tests.helpers.parse import parse
from tests.svm.legal import legal
from tests.svm.states import Case, outside_l2

LEGACY, ANNEX, NATIVE = Carrier.LEGACY, Carrier.ANNEX, Carrier.NATIVE
CASE = Case()
STATE = to_svm2(CASE.state, CASE.block, {}).state

VMX = Vmsd(
    "cpu/nested_state",
    (field("flags", bytes(4)), field("size", bytes.fromhex("00000080"))),
    (Vmsd("cpu/kvm_nested_state/vmx", (field("all", bytes(18)),)),),
)


def told(device: Device) -> CpuSection:
    (section,) = (event for event in parse(stream(device)).of(DeviceSection) if event.idstr == "cpu")
    return CpuSection.of(section)


def codes(decision: Decision) -> list[str]:
    return [finding.code for finding in decision.findings]


@pytest.mark.parametrize("target", list(Carrier))
@pytest.mark.parametrize(
    ("device", "outcome", "found"),
    [
        (vcpu(Case(cpu={"hflags": 0}).block), Outcome.NOT_IN_L2, []),
        (good(outside_l2()), Outcome.NOT_IN_L2, []),
        (good(outside_l2(has_page=True)), Outcome.NOT_IN_L2, ["page-unused"]),
        (vcpu(CASE.block), Outcome.OTHER, ["tcg-svm"]),
        (vcpu(Case(cpu={"hflags": 0}).block, VMX), Outcome.OTHER, ["vmx"]),
    ],
    ids=["no nested state", "header only", "page of no use", "TCG", "VMX"],
)
def test_what_is_no_l2_of_kvm_passes(device: Device, outcome: Outcome, found: list[str], target: Carrier) -> None:
    decision = decide(told(device), target)
    assert (decision.outcome, decision.found, decision.edit, codes(decision)) == (outcome, None, None, found)


CARRIERS: Mapping[Carrier, Vmsd] = {LEGACY: legacy(CASE.state), ANNEX: annexed(STATE), NATIVE: natively(STATE)}


@pytest.mark.parametrize("target", list(Carrier))
@pytest.mark.parametrize("found", list(Carrier))
def test_every_carrier_becomes_every_other(found: Carrier, target: Carrier) -> None:
    original = vcpu(CASE.block, CARRIERS[found])
    decision = decide(told(original), target)
    assert decision.found is found
    assert decision.outcome is (Outcome.ALREADY if found is target else Outcome.CONVERTED)
    assert (decision.edit is None) == (found is target)
    out = converted(stream(original), target)
    (section,) = (event for event in parse(out).of(DeviceSection) if event.idstr == "cpu")
    means = carried(CpuSection.of(section))
    assert means is not None
    assert means.carrier is target
    assert means.state == (None if target is LEGACY else STATE)
    assert CpuSection.of(section).block == CASE.block
    assert out == stream(vcpu(CASE.block, CARRIERS[target])) or target is NATIVE


@pytest.mark.parametrize("seeds", [30, pytest.param(150, marks=pytest.mark.fuzz)])
def test_any_state_that_a_kernel_gives_comes_back(seeds: int) -> None:
    for seed in range(seeds):
        given = legal(seed)
        # What QEMU would mirror, and does not in a random block.
        original = stream(vcpu(given.block, legacy(given.legacy), others=given.subsections))
        for target in (ANNEX, NATIVE):
            there = converted(original, target)
            assert converted(there, LEGACY) == original, seed
            assert converted(there, target) == there, seed
        assert converted(converted(original, ANNEX), NATIVE) == converted(original, NATIVE), seed
        assert converted(converted(original, NATIVE), ANNEX) == converted(original, ANNEX), seed


def linux_made(**save: int) -> Svm2State:
    """A record of a kernel that ran L2 itself."""
    area = bytearray(STATE.vmcb12_save)
    for name, value in save.items():
        SAVE.put(area, name, value)
    return dataclasses.replace(
        STATE,
        vmcb12_save=bytes(area),
        validity=STATE.validity | Validity.DR7 | Validity.G_PAT,
        flags=Svm2Flags.AUTHORITATIVE,
        producer=Producer.LINUX,
    )


def test_where_a_record_knows_better_the_section_of_a_stock_destination_follows() -> None:
    better = linux_made(dr7=0x455)
    for target in (LEGACY, ANNEX):
        decision = decide(told(vcpu(CASE.block, natively(better))), target)
        assert decision.edit is not None
        assert [cpu.BLOCK.get(decision.edit.block, name) for name in ("dr7", "dr5")] == [0x455, 0x455]
        assert "cpu.dr7" in [finding.field for finding in decision.fields]
    assert decision.edit is not None
    assert decision.edit.means.state == better


def test_a_native_destination_reads_the_record_and_the_section_stays() -> None:
    decision = decide(told(vcpu(CASE.block, annexed(linux_made(dr7=0x455)))), NATIVE)
    assert decision.edit is not None
    assert decision.edit.block == CASE.block


def test_the_section_of_an_authoritative_annex_is_made_equal_to_it() -> None:
    given = vcpu(CASE.block, annexed(linux_made(dr7=0x455, cr2=0x1234)))
    decision = decide(told(given), ANNEX)
    assert decision.outcome is Outcome.CONVERTED
    assert {finding.field for finding in decision.fields} >= {"cpu.dr7", "cpu.dr5", "cpu.cr2"}
    out = converted(stream(given), ANNEX)
    (section,) = (event for event in parse(out).of(DeviceSection) if event.idstr == "cpu")
    corrected = CpuSection.of(section)
    assert [cpu.BLOCK.get(corrected.block, name) for name in ("dr7", "dr5", "cr2")] == [0x455, 0x455, 0x1234]
    assert corrected.nested == told(given).nested
    assert converted(out, ANNEX) == out


def test_a_guess_in_an_authoritative_annex_corrects_nothing() -> None:
    guess = dataclasses.replace(linux_made(dr7=0x455), validity=Validity(0))
    assert decide(told(vcpu(CASE.block, annexed(guess))), ANNEX).edit is None


def test_an_annex_of_a_converter_that_differs_from_its_section_passes_with_a_word() -> None:
    converters = dataclasses.replace(linux_made(dr7=0x455), flags=Svm2Flags.CONVERTED, producer=Producer.QMPFILTER)
    decision = decide(told(vcpu(CASE.block, annexed(converters))), ANNEX)
    assert decision.edit is None
    assert "svm2-section" in codes(decision)
    (finding,) = (finding for finding in decision.findings if finding.code == "svm2-section")
    assert "cpu.dr7" in finding.text


def test_what_kvm_never_gives_reaches_no_stock_kernel() -> None:
    control = bytearray(STATE.vmcb12_control)
    CONTROL.put(control, "clean", 0xFFF)
    state = dataclasses.replace(linux_made(), vmcb12_control=bytes(control))
    native = told(vcpu(CASE.block, natively(state)))
    decision = decide(native, ANNEX)
    assert decision.edit is not None
    page = decision.edit.means.legacy.page or b""
    assert annex.strip(page) == CASE.state.page
    assert decide(native, NATIVE).edit is None


def test_what_legacy_state_cannot_hold_is_refused_where_it_would_be_loaded() -> None:
    own_pat = dataclasses.replace(linux_made(g_pat=0x0606_0606_0606_0606), vmcb12_control=_nested_paging())
    for state in (annexed(own_pat), natively(own_pat)):
        section = told(vcpu(CASE.block, state))
        for target in (LEGACY, ANNEX):
            with pytest.raises(RefusedError, match="l2-g-pat"):
                decide(section, target)
        decide(section, NATIVE)


def _nested_paging() -> bytes:
    control = bytearray(STATE.vmcb12_control)
    CONTROL.put(control, "misc_ctl", 1)
    return bytes(control)


@pytest.mark.parametrize("target", list(Carrier))
@pytest.mark.parametrize("found", list(Carrier))
@pytest.mark.parametrize("field_name", ["hflags", "hflags2", "efer"])
def test_contradictions_are_refused_whoever_carries_them(field_name: str, found: Carrier, target: Carrier) -> None:
    section = told(vcpu(Case(cpu={field_name: 0}).block, CARRIERS[found]))
    with pytest.raises(RefusedError):
        decide(section, target)


def test_native_damage_is_an_error() -> None:
    section = told(vcpu(CASE.block, CARRIERS[NATIVE]))
    payloads = {**section.subsections, cpu.NESTED_STATE_SVM2.name: bytes(cpu.NESTED_STATE_SVM2.layout.size)}
    damaged = dataclasses.replace(section, subsections={**payloads, cpu.NESTED_STATE.name: bytes(8)})
    for target in Carrier:
        with pytest.raises(RecordError):
            decide(damaged, target)


def test_nothing_of_a_guest_is_in_what_is_logged() -> None:
    decision = decide(told(good()), ANNEX)
    assert decision.edit is not None
    for shown in (repr(decision), repr(decision.edit)):
        assert "\\x" not in shown
