# SPDX-License-Identifier: GPL-2.0-or-later
"""Legacy state to svm2: where each field comes from, how exact it is called, what is refused, and the way back."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpfilter.errors import BugError, RefusedError
from qmpfilter.svm import annex, native
from qmpfilter.svm.convert import Upgrade, to_svm2
from qmpfilter.svm.downgrade import to_legacy
from qmpfilter.svm.findings import Severity, examine
from qmpfilter.svm.provenance import SECTION, Confidence, Row
from qmpfilter.svm.section import CpuSection
from qmpfilter.svm.segment import attrib_to_flags
from qmpfilter.svm.svm2 import L1Visible, Svm2Flags, Svm2State, Validity
from qmpfilter.svm.vmcb import CONTROL, PAGE_SIZE, REGISTERS, SAVE, SAVE_OFFSET, SEGMENTS
from qmpfilter.wire import cpu
from tests.helpers.fixtures import Fixture, fixtures
from tests.helpers.truth import spoken_mask, spoken_registers
from tests.helpers.vcpus import vcpus_in_l2
from tests.svm.legal import legal
from tests.svm.states import CPU_FIELDS, LIVE_ATTRIBS, VMCB_PA, Case, outside_l2, page
from tests.svm.test_findings import BAD, HARMLESS, HSAVE

GOOD = Case()
SEEDS = st.integers(0, (1 << 64) - 1)
EXACT, CANON, GUESSED = Confidence.EXACT, Confidence.CANON, Confidence.GUESSED
WRITES_TO_DR7 = 1 << 23
WRITTEN_BY_L2 = 0x600  # DR7_WRITTEN in tests/lab/guest/layout.inc


def upgraded(case: Case, vmcb12: bytes | None = None, **payloads: bytes) -> Upgrade:
    """The state of a case; subsections without a given payload are empty where nothing reads them."""
    present = {name: payloads.get(name, b"") for name in case.subsections}
    return to_svm2(case.state, case.block, present, vmcb12=vmcb12)


def save(state: Svm2State, name: str) -> int:
    return SAVE.get(state.vmcb12_save, name)


def confidences(result: Upgrade) -> dict[str, Confidence]:
    return {finding.field: finding.confidence for finding in result.fields}


def in_memory(case: Case, *, control: Mapping[str, int] | None = None, **l2: int) -> bytes:
    """VMCB12 as L1 wrote it for a case, with these registers of L2."""
    return page({**case.control, **(control or {})}, {"dr7": 0x400, **l2})


# --- round trips -------------------------------------------------------------------------------


@settings(max_examples=10 * settings().max_examples)
@given(seed=SEEDS)
def test_every_carrier_gives_the_legacy_page_back(seed: int) -> None:
    legacy, block, subsections = legal(seed)
    state = to_svm2(legacy, block, subsections).state
    vmcb_page = annex.encode(state)
    assert annex.strip(vmcb_page) == legacy.page
    told = annex.decode(vmcb_page, legacy.vmcb_pa, run_pending=legacy.run_pending, gif=legacy.gif)
    assert told == state
    through = native.decode_subsections(*native.encode_subsections(told))
    assert native.decode_blob(native.encode_blob(through)) == state
    assert annex.encode(through) == vmcb_page


@settings(max_examples=10 * settings().max_examples)
@given(seed=SEEDS)
def test_legacy_state_and_its_section_come_back_unchanged(seed: int) -> None:
    legacy, block, subsections = legal(seed)
    back = to_legacy(to_svm2(legacy, block, subsections).state, block, subsections)
    assert back.legacy == legacy
    assert back.block == block
    assert not back.subsections
    assert not back.fields


@settings(max_examples=2 * settings().max_examples)
@given(seed=SEEDS)
def test_every_register_is_told_of_once(seed: int) -> None:
    counted = Counter(finding.field for finding in to_svm2(*legal(seed)).fields)
    assert set(counted.values()) == {1}
    assert {field.removeprefix("vmcb12_save.") for field in counted if field.startswith("vmcb12_save.")} == set(
        REGISTERS
    )


# --- sources -----------------------------------------------------------------------------------


def test_the_good_state() -> None:
    result = upgraded(GOOD)
    state = result.state
    assert (state.run_pending, state.gif, state.vmcb_pa) == (False, True, VMCB_PA)
    assert state.l1_visible == L1Visible(0x8005_0033, 0x40_0000, 0x4_1220, 0x1D01, 0x0007_0406_0007_0406)
    assert state.vmcb12_control + state.l1_save == bytes(GOOD.state.control) + bytes(GOOD.state.save)
    assert (state.flags, state.producer) == (Svm2Flags.CONVERTED, 1)
    assert not state.validity
    assert not result.warnings


@pytest.mark.parametrize(
    "row", [row for row in SECTION if row.register not in SEGMENTS], ids=lambda row: row.register
)
def test_a_register_comes_from_the_section(row: Row) -> None:
    if row.register == "cpl":
        assert save(upgraded(Case(cpu={"ss_flags": attrib_to_flags(0xCF3)})).state, "cpl") == 3
        return
    good = CPU_FIELDS.get(row.section, 0)
    result = upgraded(Case(cpu={row.section: good ^ 0x8}))
    assert save(result.state, row.register) == good ^ 0x8
    if row.confidence is not GUESSED:
        assert confidences(result)[f"vmcb12_save.{row.register}"] is row.confidence


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_segment_comes_from_the_section(name: str) -> None:
    own = {"gdtr": "gdt", "idtr": "idt", "ldtr": "ldt"}.get(name, name)
    block = {f"{own}_selector": 0x5B, f"{own}_base": 0x1234_5000, f"{own}_limit": 0xF_FFFF}
    result = upgraded(Case(cpu={**block, f"{own}_flags": attrib_to_flags(0x0F3) | 0xF_00FF}))
    table = name in ("gdtr", "idtr")
    assert [save(result.state, f"{name}_{part}") for part in ("selector", "base", "limit", "attrib")] == [
        0 if table else 0x5B, 0x1234_5000, 0xF_FFFF, 0 if table else 0x0F3,
    ]  # fmt: skip
    assert confidences(result)[f"vmcb12_save.{name}"] is (EXACT if table else CANON)


@pytest.mark.parametrize("name", LIVE_ATTRIBS)
def test_a_live_segment_comes_raw_from_the_page(name: str) -> None:
    raw = LIVE_ATTRIBS[name] ^ (0x802 if name == "tr" else 0x800)
    result = upgraded(Case(l1={f"{name}_attrib": raw}))
    assert save(result.state, f"{name}_attrib") == raw
    assert confidences(result)[f"vmcb12_save.{name}"] is EXACT
    # In the separate page of older kernels it is not.
    assert confidences(upgraded(Case(l1=HSAVE)))[f"vmcb12_save.{name}"] is CANON


def test_a_live_segment_of_another_instant_comes_from_the_section() -> None:
    result = upgraded(Case(l1={"fs_base": 0x1000, "fs_attrib": 0x493}))
    assert [finding.code for finding in result.warnings] == ["live-copy-differs"]
    assert save(result.state, "fs_base") == CPU_FIELDS["fs_base"]
    assert save(result.state, "fs_attrib") == LIVE_ATTRIBS["fs"]
    assert confidences(result)["vmcb12_save.fs"] is CANON
    assert confidences(result)["vmcb12_save.gs"] is EXACT


def test_the_upper_half_of_sysenter_is_the_sections() -> None:
    result = upgraded(Case(cpu={"sysenter_eip": 0xFFFF_FFFF_8200_2000}))
    assert save(result.state, "sysenter_eip") == 0xFFFF_FFFF_8200_2000


def test_bits_that_are_always_set_are() -> None:
    state = upgraded(Case(cpu={"rflags": 0, "dr7": 0})).state
    assert (save(state, "rflags"), save(state, "dr7")) == (0x2, 0x400)


def test_registers_of_subsections() -> None:
    apart = {
        "cpu/cet": bytes(7) + b"\1" + bytes(7) + b"\2",
        "cpu/cet_shstk": bytes(24) + bytes(7) + b"\3" + bytes(7) + b"\4",
        "cpu/spec_ctrl": bytes(7) + b"\5",
    }
    result = upgraded(Case(subsections=frozenset(apart)), **apart)
    names = ("s_cet", "isst_addr", "ssp", "spec_ctrl")
    assert [save(result.state, name) for name in names] == [2, 3, 4, 5]
    assert {confidences(result)[f"vmcb12_save.{name}"] for name in names} == {EXACT}
    assert result.state.validity == Validity.CET | Validity.SPEC_CTRL
    absent = confidences(upgraded(GOOD))
    assert {absent[f"vmcb12_save.{name}"] for name in names} == {Confidence.RECOMPUTED}


@pytest.mark.parametrize(
    ("misc_ctl2", "confidence"), [(0x0, Confidence.RECOMPUTED), (0x1, Confidence.LOST), (0x2, Confidence.RECOMPUTED)]
)
def test_lbr_is_never_carried(misc_ctl2: int, confidence: Confidence) -> None:
    result = upgraded(Case(control={"misc_ctl2": misc_ctl2}))
    assert confidences(result)["vmcb12_save.br_from"] is confidence
    assert not result.state.validity & Validity.LBR


@pytest.mark.parametrize(
    ("flags", "next_rip", "valid"),
    [
        (0x101, 0x1000, Validity(0)),
        (0x103, 0x1000, Validity.NEXT_RIP | Validity.INT_STATE),
        (0x103, 0, Validity.INT_STATE),
    ],
)
def test_next_rip_and_int_state_are_sure_only_before_l2_ran(flags: int, next_rip: int, valid: Validity) -> None:
    state = upgraded(Case(flags=flags, control={"next_rip": next_rip})).state
    assert state.validity & (Validity.NEXT_RIP | Validity.INT_STATE) == valid


# --- what memory settles -----------------------------------------------------------------------

# The section's DR7, L1's in the page, VMCB12's in memory (None: not read), and whether L1 intercepts writes:
# which is taken, and is it exact?
DR7S = [
    (0x400, 0x400, None, False, 0x400, False),
    (0x401, 0x401, None, False, 0x401, False),
    (0x402, 0x401, None, False, 0x402, True),
    (0x000, 0x400, None, False, 0x400, False),
    (0x401, 0x401, 0x401, False, 0x401, True),
    (0x400, 0x400, 0x000, False, 0x400, True),
    (0x401, 0x401, 0x402, False, 0x402, False),
    (0x401, 0x401, 0x402, True, 0x402, True),
    (0x403, 0x401, 0x402, False, 0x403, True),
    (0x403, 0x401, 0x402, True, 0x402, True),
]


@pytest.mark.parametrize(("section", "of_l1", "memory", "intercepted", "taken", "exact"), DR7S)
def test_dr7(section: int, of_l1: int, memory: int | None, intercepted: bool, taken: int, exact: bool) -> None:
    case = Case(
        cpu={"dr7": section}, l1={"dr7": of_l1}, control={"intercept_dr": WRITES_TO_DR7 if intercepted else 0}
    )
    result = upgraded(case, None if memory is None else in_memory(case, dr7=memory))
    assert save(result.state, "dr7") == taken
    assert confidences(result)["vmcb12_save.dr7"] is (EXACT if exact else GUESSED)
    assert bool(result.state.validity & Validity.DR7) == exact


def test_dr7_before_l2_ran_is_that_of_memory() -> None:
    case = Case(flags=0x103, cpu={"dr7": 0x401}, l1={"dr7": 0x401})
    result = upgraded(case, in_memory(case, dr7=0x402))
    assert (save(result.state, "dr7"), confidences(result)["vmcb12_save.dr7"]) == (0x402, EXACT)


def test_dr7_of_an_older_kernel_is_not_told_from_l1s() -> None:
    case = Case(l1=HSAVE, cpu={"dr7": 0x401})
    for memory in (None, in_memory(case, dr7=0x402)):
        result = upgraded(case, memory)
        assert (save(result.state, "dr7"), confidences(result)["vmcb12_save.dr7"]) == (0x401, GUESSED)


@pytest.mark.parametrize(
    ("misc_ctl", "memory", "confidence"),
    [
        (0, None, Confidence.RECOMPUTED),
        (1, None, GUESSED),
        (1, CPU_FIELDS["pat"], EXACT),
        (1, 0x7, GUESSED),
        (0, 0x7, Confidence.RECOMPUTED),
    ],
)
def test_g_pat_is_the_shared_one(misc_ctl: int, memory: int | None, confidence: Confidence) -> None:
    case = Case(control={"misc_ctl": misc_ctl})
    result = upgraded(case, None if memory is None else in_memory(case, g_pat=memory))
    assert save(result.state, "g_pat") == CPU_FIELDS["pat"]
    assert confidences(result)["vmcb12_save.g_pat"] is confidence
    assert bool(result.state.validity & Validity.G_PAT) == (confidence is EXACT)


@pytest.mark.parametrize("name", ["asid", "tsc_offset", "iopm_base_pa", "msrpm_base_pa", "nested_cr3"])
def test_memory_that_is_not_this_vmcb12_is_not_used(name: str) -> None:
    case = Case(cpu={"dr7": 0x401}, l1={"dr7": 0x401})
    result = upgraded(case, in_memory(case, control={name: 0x7000}, dr7=0x402))
    assert [finding.code for finding in result.warnings] == ["dr7-guess", "memory-differs"]
    assert save(result.state, "dr7") == 0x401


def test_low_bits_of_the_maps_do_not_matter() -> None:
    case = Case(control={"iopm_base_pa": 0x10_0000})
    assert not upgraded(case, in_memory(case, control={"iopm_base_pa": 0x10_0FFF})).warnings


# --- refusals ----------------------------------------------------------------------------------

IN_L2 = [
    (code, case)
    for code, case in BAD
    if {finding.severity for finding in examine(case.state, case.block, case.subsections)} == {Severity.REFUSE}
]
LOSSES = [(code, case) for code, case in BAD if (code, case) not in IN_L2 and case.format == 1 and case.flags & 1]


@pytest.mark.parametrize(("code", "case"), IN_L2)
def test_what_is_damaged_is_refused_with_its_reason(code: str, case: Case) -> None:
    with pytest.raises(RefusedError, match=rf"\[{code}\]") as error:
        upgraded(case)
    assert [reason for reason, _ in error.value.reasons] == [code]


@pytest.mark.parametrize(("code", "case"), LOSSES)
def test_what_is_lost_is_passed_on(code: str, case: Case) -> None:
    assert [finding.code for finding in upgraded(case).warnings] == [code]


CONVERTED = [case for _, case in HARMLESS if case.flags & 1 and "cpu/cet" not in case.subsections]


@pytest.mark.parametrize("case", CONVERTED)
def test_what_is_harmless_is_converted(case: Case) -> None:
    present = dict.fromkeys(case.subsections, b"")
    state = to_svm2(case.state, case.block, present).state
    assert annex.strip(annex.encode(state)) == case.state.page


def test_the_offset_of_a_refusal_is_that_of_its_field() -> None:
    for case, offset in (
        (Case(control={"asid": 0}), CONTROL.offset("asid")),
        (Case(l1={"cr0": 0x11}), SAVE_OFFSET + SAVE.offset("cr0")),
        (Case(cpu={"efer": 0}), cpu.BLOCK.offset("efer")),
        (Case(format=2), 2),
    ):
        with pytest.raises(RefusedError) as error:
            upgraded(case)
        assert error.value.offset == offset


@pytest.mark.parametrize("at", [0x700, 0xC7F, 0xC80, 0xFFF])
def test_bytes_where_no_kernel_writes_any_are_refused(at: int) -> None:
    dirty = bytearray(page())
    dirty[at] = 1
    with pytest.raises(RefusedError, match=f"a byte at {at:#x}"):
        to_svm2(replace(GOOD.state, page=bytes(dirty)), GOOD.block, {})


def test_a_page_that_has_a_record_is_refused() -> None:
    dirty = annex.encode(upgraded(GOOD).state)
    with pytest.raises(RefusedError, match="has an svm2 record"):
        to_svm2(replace(GOOD.state, page=dirty), GOOD.block, {})


@pytest.mark.parametrize("case", [outside_l2(), Case(format=0)])
def test_without_l2_there_is_nothing_to_convert(case: Case) -> None:
    with pytest.raises(BugError):
        upgraded(case)


def test_wrong_sizes_are_bugs() -> None:
    with pytest.raises(BugError):
        to_svm2(GOOD.state, GOOD.block[1:], {})
    with pytest.raises(BugError):
        to_svm2(GOOD.state, GOOD.block, {"cpu/spec_ctrl": bytes(7)})
    with pytest.raises(BugError):
        to_svm2(GOOD.state, GOOD.block, {}, vmcb12=bytes(PAGE_SIZE - 1))


@settings(max_examples=3 * settings().max_examples)
@given(seed=SEEDS, noise=st.integers(0, 40))
def test_noise_is_converted_or_refused(seed: int, noise: int) -> None:
    random = Random(seed)
    legacy, block, _ = legal(seed)
    assert legacy.page is not None
    dirty, registers = bytearray(legacy.page), bytearray(block)
    for _ in range(noise):
        dirty[random.randrange(0x700)] = random.getrandbits(8)
        registers[random.randrange(len(registers))] = random.getrandbits(8)
    changed = replace(legacy, page=bytes(dirty))
    with contextlib.suppress(RefusedError):
        state = to_svm2(changed, bytes(registers), {}, vmcb12=random.randbytes(PAGE_SIZE)).state
        assert annex.strip(annex.encode(state)) == changed.page


# --- real recordings ---------------------------------------------------------------------------

# How `info registers` calls what is a plain register of the save area.
SPOKEN = {
    "efer": "EFER", "cr0": "CR0", "cr2": "CR2", "cr3": "CR3", "cr4": "CR4", "dr6": "DR6", "rflags": "RFL",
    "rip": "RIP", "rsp": "RSP", "rax": "RAX",
}  # fmt: skip
# One after the other, so that each is parsed once.
RECORDINGS = pytest.mark.parametrize(
    "fixture",
    [item for item in fixtures() if any(facts["mode"] == "L2" for facts in item.facts["vcpus"])],
    ids=str,
    scope="module",
)


def converted(fixture: Fixture) -> Iterator[tuple[CpuSection, Upgrade, bytes]]:
    """Each vCPU in L2, what it became, and VMCB12 in guest memory."""
    pages = fixture.truth()["vmcb12"]
    for vcpu in vcpus_in_l2(fixture.file("stream")):
        assert vcpu.nested is not None
        memory = bytes.fromhex(pages[str(vcpu.index)]["bytes"])
        yield vcpu, to_svm2(vcpu.nested, vcpu.block, vcpu.subsections, vmcb12=memory), memory


@RECORDINGS
def test_l2s_save_area_is_what_qemu_says(fixture: Fixture) -> None:
    truth = fixture.truth()["registers"]
    for vcpu, result, _ in converted(fixture):
        text = truth[str(vcpu.index)]["text"]
        spoken, mask = spoken_registers(text), spoken_mask(text)
        for name, said in SPOKEN.items():
            assert (save(result.state, name),) == spoken[said], name
        for name in SEGMENTS:
            said = {"gdtr": "GDT", "idtr": "IDT", "ldtr": "LDT"}.get(name, name.upper())
            selector, base, limit, *flags = spoken[said] if len(spoken[said]) == 4 else (0, *spoken[said])
            parts = [save(result.state, f"{name}_{part}") for part in ("selector", "base", "limit")]
            parts[1] &= mask
            assert parts == [selector, base, limit], name
            if flags:
                assert attrib_to_flags(save(result.state, f"{name}_attrib")) == flags[0], name


@RECORDINGS
def test_a_recording_comes_back_from_every_carrier(fixture: Fixture) -> None:
    for vcpu, result, _ in converted(fixture):
        assert vcpu.nested is not None
        assert annex.strip(annex.encode(result.state)) == vcpu.nested.page
        assert native.decode_subsections(*native.encode_subsections(result.state)) == result.state
        back = to_legacy(result.state, vcpu.block, vcpu.subsections)
        assert back.legacy == vcpu.nested
        assert {finding.field for finding in back.fields} <= {"cpu.dr7", "cpu.dr5"}


@RECORDINGS
def test_memory_is_recognised_as_l2s_vmcb12(fixture: Fixture) -> None:
    for _, result, memory in converted(fixture):
        assert not [finding for finding in result.warnings if finding.code == "memory-differs"]
        if confidences(result)["vmcb12_save.dr7"] is EXACT:
            continue
        assert save(result.state, "dr7") == SAVE.get(memory, "dr7", SAVE_OFFSET) | 0x400


@RECORDINGS
def test_dr7_that_is_called_exact_without_memory_is(fixture: Fixture) -> None:
    writing = {facts["index"] for facts in fixture.facts["vcpus"] if facts.get("letter") == "D"}
    for vcpu, _, memory in converted(fixture):
        assert vcpu.nested is not None
        alone = to_svm2(vcpu.nested, vcpu.block, vcpu.subsections)
        if alone.state.validity & Validity.DR7:
            # What VMRUN loaded, or what an L2 of mode D writes.
            known = {SAVE.get(memory, "dr7", SAVE_OFFSET), WRITTEN_BY_L2 if vcpu.index in writing else None}
            assert save(alone.state, "dr7") in known
