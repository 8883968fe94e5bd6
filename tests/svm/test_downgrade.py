# SPDX-License-Identifier: GPL-2.0-or-later
"""svm2 to legacy state: the section follows L2's save area, the rest is told or refused."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given

from qmpfilter.errors import BugError, RefusedError
from qmpfilter.svm.convert import to_svm2
from qmpfilter.svm.downgrade import Downgrade, to_legacy
from qmpfilter.svm.findings import Severity, examine
from qmpfilter.svm.provenance import SECTION, Confidence, Move, moves
from qmpfilter.svm.svm2 import Svm2State, Validity
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET
from qmpfilter.wire import cpu
from tests.svm.states import CPU_FIELDS, Case
from tests.svm.test_annex import STATES

GOOD = Case()
STATE = to_svm2(GOOD.state, GOOD.block, {}).state
WRITTEN = [move for row in SECTION for move in moves(row) if move.compared]
LOST = Confidence.LOST


def with_save(state: Svm2State = STATE, /, **registers: int) -> Svm2State:
    built = bytearray(state.vmcb12_save)
    for name, value in registers.items():
        SAVE.put(built, name, value)
    return replace(state, vmcb12_save=bytes(built))


def with_control(**values: int) -> Svm2State:
    built = bytearray(STATE.vmcb12_control)
    for name, value in values.items():
        CONTROL.put(built, name, value)
    return replace(STATE, vmcb12_control=bytes(built))


def downgraded(state: Svm2State, subsections: Mapping[str, bytes] | None = None) -> Downgrade:
    return to_legacy(state, GOOD.block, subsections or {})


def told(result: Downgrade) -> dict[str, Confidence]:
    return {finding.field: finding.confidence for finding in result.fields}


def changed(result: Downgrade) -> dict[str, int]:
    """The fields of the section that are not those of the good one."""
    old, new = cpu.BLOCK.parse(GOOD.block), cpu.BLOCK.parse(result.block)
    return {name: new[name] for name in new if new[name] != old[name]}


def test_what_agrees_stays() -> None:
    result = downgraded(STATE)
    assert (result.legacy, result.block) == (GOOD.state, GOOD.block)
    assert (result.subsections, result.fields, result.warnings) == ({}, (), ())


@pytest.mark.parametrize("move", WRITTEN, ids=lambda move: move.save)
def test_the_section_follows_l2s_save_area(move: Move) -> None:
    # A bit that every register has and no check looks at; in the attributes of SS it would be the CPL.
    value = SAVE.get(STATE.vmcb12_save, move.save) ^ (1 << 8 if move.save == "ss_attrib" else 1 << 6)
    result = downgraded(with_save(replace(STATE, validity=Validity.DR7), **{move.save: value}))
    assert move.read(cpu.BLOCK.get(result.block, move.block)) & move.compared == value & move.compared
    mirror = {"dr6": {"dr4"}, "dr7": {"dr5"}}.get(move.save, set())
    assert set(changed(result)) == {move.block} | mirror
    assert told(result) == {f"cpu.{name}": Confidence.EXACT for name in changed(result)}


def test_a_guessed_dr7_leaves_the_section_as_it_is() -> None:
    assert not changed(downgraded(with_save(replace(STATE, validity=Validity(0)), dr7=0x401)))


def test_what_kvm_normalises_is_no_difference() -> None:
    ds, tr = SAVE.get(STATE.vmcb12_save, "ds_attrib"), SAVE.get(STATE.vmcb12_save, "tr_attrib")
    assert not changed(downgraded(with_save(ds_attrib=ds ^ 0x801, tr_attrib=tr ^ 0x802)))


def test_dpl_that_qemu_cleared_in_real_mode_is_no_difference() -> None:
    real = Case(cpu={"cr0": 0x10, "efer": 0x1000, "cs_flags": 0x9B << 8}, l1={"fs_attrib": 0xCF3})
    state = to_svm2(real.state, real.block, {}).state
    assert SAVE.get(state.vmcb12_save, "fs_attrib") == 0xCF3
    assert to_legacy(state, real.block, {}).block == real.block


def test_cpl_goes_into_the_dpl_of_ss() -> None:
    result = downgraded(with_save(cpl=3, ss_attrib=0xCF3))
    assert changed(result) == {"ss_flags": 0xC0_F300}


def test_gif_and_guest_mode_agree_in_all_four_places() -> None:
    outside = Case(cpu={"hflags": 0x1, "hflags2": 0x2}).block
    for gif in (True, False):
        result = to_legacy(replace(STATE, gif=gif, run_pending=True), outside, {})
        assert result.legacy.flags == (0x103 if gif else 0x003)
        assert cpu.BLOCK.get(result.block, "hflags") == cpu.HF_GUEST | 0x1
        assert cpu.BLOCK.get(result.block, "hflags2") == (0x3 if gif else 0x2)
        assert [finding.code for finding in result.warnings] == ["run-pending"]


def test_l1s_own_registers_go_into_the_page_and_its_pat_into_the_section() -> None:
    visible = replace(STATE.l1_visible, cr3=0x77_7000, pat=0x0606)
    result = downgraded(replace(with_save(g_pat=0x0606), l1_visible=visible))
    assert SAVE.get(result.legacy.save, "cr3") == 0x77_7000
    assert changed(result) == {"pat": 0x0606}


def test_l1s_save_area_is_made_acceptable() -> None:
    built = bytearray(STATE.l1_save)
    SAVE.put(built, "cpl", 3)
    SAVE.put(built, "rflags", 0)
    result = downgraded(replace(STATE, l1_save=bytes(built)))
    assert (SAVE.get(result.legacy.save, "cpl"), SAVE.get(result.legacy.save, "rflags")) == (0, 2)


def test_control_is_as_kvm_gives_it() -> None:
    result = downgraded(with_control(clean=0x1FFF, hv_vp_id=1, iopm_base_pa=0x10_0FFF, avic_logical_id=0x1000))
    assert result.legacy.page == GOOD.state.page
    assert told(result) == {"control.clean": LOST, "control.hv_vp_id": LOST, "control.avic_logical_id": LOST}


@pytest.mark.parametrize(
    "name", ["dbgctl", "br_from", "last_excp_to", "vmpl", "s_cet", "ssp", "isst_addr", "spec_ctrl"]
)
def test_what_has_no_place_is_lost(name: str) -> None:
    assert told(downgraded(with_save(**{name: 1}))) == {f"vmcb12_save.{name}": LOST}


def test_bytes_of_no_register_are_lost() -> None:
    built = bytearray(STATE.vmcb12_save)
    built[0xA0] = 1
    assert told(downgraded(replace(STATE, vmcb12_save=bytes(built)))) == {"vmcb12_save": LOST}


def test_registers_of_subsections_follow_where_they_are_valid() -> None:
    present = {"cpu/cet": bytes(16), "cpu/cet_shstk": bytes(40), "cpu/spec_ctrl": bytes(8)}
    state = with_save(s_cet=1, ssp=2, isst_addr=3, spec_ctrl=4)
    assert not downgraded(replace(state, validity=Validity(0)), present).subsections
    result = downgraded(replace(state, validity=Validity.CET | Validity.SPEC_CTRL), present)
    assert result.subsections == {
        "cpu/cet": bytes(15) + b"\1",
        "cpu/cet_shstk": bytes(31) + b"\3" + bytes(7) + b"\2",
        "cpu/spec_ctrl": bytes(7) + b"\4",
    }
    assert set(told(result)) == {
        "cpu/cet.s_cet", "cpu/cet_shstk.guest_ssp", "cpu/cet_shstk.int_ssp_table", "cpu/spec_ctrl.spec_ctrl",
    }  # fmt: skip


V8086 = {f"{name}_attrib": 0x0F3 for name in ("es", "cs", "ss", "ds", "fs", "gs")}
NOT_LONG = {"cr0": 0x11, "efer": 0x1000, "cs_attrib": 0x49B}


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("l2-cpl", with_save(cpl=3)),
        ("l2-v8086", with_save(**{**NOT_LONG, **V8086, "gs_attrib": 0x093}, cpl=3, rflags=0x2_0002)),
        ("l2-long-mode", with_save(cr4=0)),
        ("l2-long-mode", with_save(efer=0x1100)),
        ("l2-not-long-mode", with_save(**{**NOT_LONG, "efer": 0x1400})),
        ("l2-not-long-mode", with_save(**{**NOT_LONG, "cs_attrib": 0x29B})),
        ("l2-g-pat", with_save(replace(with_control(misc_ctl=1), validity=Validity.G_PAT), g_pat=0x0606)),
        ("l2-efer-svme", with_save(efer=0x500)),
        ("l2-cr0-nw", with_save(cr0=0xA000_0011)),
        ("cet-missing", with_save(cr4=0x80_0020)),
        ("asid", with_control(asid=0)),
        ("l1-cr0-pg", replace(STATE, l1_visible=replace(STATE.l1_visible, cr0=0x11))),
        ("vmcb-pa", replace(STATE, vmcb_pa=0)),
    ],
)
def test_what_no_kernel_would_load_is_refused(code: str, state: Svm2State) -> None:
    with pytest.raises(RefusedError) as error:
        downgraded(state)
    assert [reason for reason, _ in error.value.reasons] == [code]
    assert all("{" not in text for _, text in error.value.reasons)


@pytest.mark.parametrize(
    "state",
    [
        with_save(**NOT_LONG),
        with_save(**{**NOT_LONG, **V8086}, cpl=3, rflags=0x2_0002),
        with_save(with_control(misc_ctl=1), g_pat=CPU_FIELDS["pat"]),
        with_save(replace(STATE, validity=Validity(0)), g_pat=0x0606),
    ],
)
def test_what_a_kernel_would_load_is_not(state: Svm2State) -> None:
    result = downgraded(state)
    assert not [item for item in examine(result.legacy, result.block, ()) if item.severity is Severity.REFUSE]


def test_state_of_a_kernel_with_only_the_vmrun_class_of_l1() -> None:
    built = bytearray(STATE.l1_save)
    for name in ("fs", "gs", "ldtr", "tr"):
        start = SAVE.offset(f"{name}_selector")
        built[start : start + 16] = bytes(16)
    for name in ("dr6", "dr7", "g_pat", "star", "lstar"):
        SAVE.put(built, name, 0)
    result = downgraded(replace(STATE, l1_save=bytes(built), producer=2))
    assert result.legacy.page is not None
    assert SAVE.get(result.legacy.page, "tr_attrib", SAVE_OFFSET) == 0
    assert [finding.code for finding in result.warnings] == ["hsave-era"]
    assert not changed(result)


@given(state=STATES)
def test_any_state_is_converted_or_refused(state: Svm2State) -> None:
    with contextlib.suppress(RefusedError):
        downgraded(state, {"cpu/cet": bytes(16), "cpu/cet_shstk": bytes(40)})


def test_a_block_of_the_wrong_size_is_a_bug() -> None:
    with pytest.raises(BugError):
        to_legacy(STATE, GOOD.block[1:], {})
