# SPDX-License-Identifier: GPL-2.0-or-later
"""Every rule: one change to a good state, exactly one code."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpfilter.errors import BugError
from qmpfilter.svm.findings import RULES, Severity, examine
from qmpfilter.svm.legacy import SIZE_SUBSECTION_SVM, LegacyState
from qmpfilter.svm.vmcb import SEGMENTS, RegisterClass, registers, save_fields
from qmpfilter.wire import cpu
from tests.svm.states import L1_FIELDS, SUBSECTIONS, VMCB_PA, Case, block, outside_l2

GOOD = Case()
SEGMENTS_GONE = {
    name: 0
    for register in registers(RegisterClass.VMLOAD)
    for name in save_fields(register)
}  # fmt: skip
HSAVE = SEGMENTS_GONE | {"dr6": 0, "dr7": 0, "g_pat": 0}


def codes(case: Case) -> list[str]:
    return [finding.code for finding in examine(case.state, case.block, case.subsections)]


BAD: list[tuple[str, Case]] = [
    # envelope
    ("vmx", Case(format=0)),
    ("format", Case(format=2)),
    ("format", Case(format=0x8002)),
    ("flags", Case(flags=0x105)),
    ("flags", Case(flags=0x8101)),
    ("run-pending-without-guest-mode", outside_l2(flags=0x102)),
    ("size", Case(size=0x80)),
    ("size", Case(size=0x1081)),
    ("size", outside_l2(size=0x7F)),
    ("page-missing", Case(has_page=False, vmcb_pa=0)),
    ("page-unused", outside_l2(size=0x1080, has_page=True)),
    ("page-unused", outside_l2(size=0x1080)),
    ("guest-mode-disagrees", Case(cpu={"hflags": 0})),
    ("guest-mode-disagrees", outside_l2(hflags=cpu.HF_GUEST)),
    ("gif-disagrees", Case(cpu={"hflags2": 0})),
    ("gif-disagrees", Case(flags=0x001)),
    ("gif-disagrees", outside_l2(flags=0)),
    # L2, by the section
    ("smm-guest-mode", Case(cpu={"hflags": cpu.HF_GUEST | cpu.HF_SMM})),
    ("l2-efer-svme", Case(cpu={"efer": 0x500})),
    ("l2-cr0-nw", Case(cpu={"cr0": 0xA000_0011})),
    ("cet-missing", Case(cpu={"cr4": 0x80_0020})),
    ("run-pending", Case(flags=0x103)),
    ("error-code-missing", Case(cpu={"exception_nr": 14, "has_error_code": 1})),
    # control
    ("vmcb-pa", Case(vmcb_pa=0, l1={"rax": 0})),
    ("vmcb-pa", Case(vmcb_pa=VMCB_PA + 8, l1={"rax": VMCB_PA + 8})),
    ("vmcb-pa", Case(vmcb_pa=2**64 - 1, l1={"rax": 2**64 - 1})),
    ("vmrun-intercept", Case(control={"intercept_word4": 0x2})),
    ("asid", Case(control={"asid": 0})),
    ("sev", Case(control={"misc_ctl": 0x2})),
    ("sev", Case(control={"misc_ctl": 0x5})),
    # L1's save area
    ("l1-cr0-pg", Case(l1={"cr0": 0x0005_0033})),
    ("l1-cr0-pg", Case(l1={"cr0": 0x8005_0032})),
    ("l1-cr0-nw", Case(l1={"cr0": 0xA005_0033})),
    ("l1-cr0-high", Case(l1={"cr0": 0x1_8005_0033})),
    ("l1-rflags-vm", Case(l1={"rflags": 0x2_0002})),
    ("l1-efer-svme", Case(l1={"efer": 0xD01})),
    ("l1-efer-lma", Case(l1={"efer": 0x1C01})),
    ("l1-dr6-high", Case(l1={"dr6": 0x1_FFFF_0FF0})),
    ("l1-dr7-high", Case(l1={"dr7": 0x1_0000_0400})),
    ("l1-cr4-pae", Case(l1={"cr4": 0x4_1200})),
    ("l1-cr3", Case(l1={"cr3": 1 << 52})),
    ("l1-cr3", Case(l1={"cr3": 1 << 63})),
    ("l1-cs", Case(l1={"cs_attrib": 0xE9B})),
    # losses
    ("vmcb-pa-rax", Case(l1={"rax": VMCB_PA + 0x1000})),
    ("vmcb-pa-rax", Case(vmcb_pa=1 << 32 | VMCB_PA)),
    ("dr7-guess", Case(l1={"dr7": 0x401}, cpu={"dr7": 0x401})),
    ("lbr", Case(control={"misc_ctl2": 0x1})),
    ("hyperv", Case(control={"hv_enlightenments_control": 0x2})),
    ("hyperv", Case(control={"partition_assist_page": 0x1000})),
    ("hsave-era", Case(l1=HSAVE)),
    ("era-unknown", Case(l1={"tr_attrib": 0})),
    ("live-copy-differs", Case(cpu={"gs_base": 0x1000})),
    ("live-copy-differs", Case(cpu={"tr_limit": 0x67})),
    ("live-copy-differs", Case(l1={"fs_selector": 0x2B})),
    ("live-copy-differs", Case(l1={"ldtr_attrib": 0})),
    ("live-copy-differs", Case(l1={"lstar": 0})),
    ("live-copy-differs", Case(l1={"sysenter_esp": 0x5001})),
]

HARMLESS: list[tuple[str, Case]] = [
    ("good", GOOD),
    ("L1 runs", outside_l2()),
    ("GIF clear in L2", Case(flags=0x001, cpu={"hflags2": 0})),
    ("other hflags bits", Case(cpu={"hflags": cpu.HF_GUEST | 0x11})),
    ("nested paging", Case(control={"misc_ctl": 0x1, "nested_cr3": 0x5000})),
    ("CET with its state", Case(cpu={"cr4": 0x80_0020}, subsections=SUBSECTIONS | {"cpu/cet"})),
    ("an exception without error code", Case(cpu={"exception_nr": 6})),
    (
        "an error code with its subsection",
        Case(cpu={"exception_nr": 14, "has_error_code": 1}, subsections=SUBSECTIONS | {"cpu/error_code"}),
    ),
    ("has_error_code left behind", Case(cpu={"has_error_code": 1})),
    ("CD and NW", Case(cpu={"cr0": 0xE000_0011}, l1={"cr0": 0xE005_0033})),
    ("LAM in L1's CR3", Case(l1={"cr3": 3 << 61 | 0x40_0000})),
    ("an L1 without long mode", Case(l1={"efer": 0x1000, "cr4": 0x10, "cs_attrib": 0xC9B})),
    ("D without long mode", Case(l1={"efer": 0x1000, "cs_attrib": 0xE9B})),
    ("VMRUN with 32-bit addresses", Case(l1={"rax": 0xABCD_0000_0000_0000 | VMCB_PA})),
    ("DR6 after a restore", Case(l1={"dr6": 0})),
    ("DR7 that only L2 has", Case(cpu={"dr7": 0x401})),
    ("DR7 that only L1 has", Case(l1={"dr7": 0x401})),
    ("DR7 zero in both", Case(l1={"dr7": 0}, cpu={"dr7": 0})),
    ("G recomputed", Case(l1={"fs_attrib": 0x493, "tr_attrib": 0x88B})),
    ("busy and accessed forced", Case(l1={"tr_attrib": 0x089, "gs_attrib": 0xC92})),
    ("DPL cleared in real mode", Case(l1={"fs_attrib": 0xCF3}, cpu={"cr0": 0x10})),
    ("SYSENTER beyond 32 bits", Case(cpu={"sysenter_eip": 0xFFFF_FFFF_8200_2000})),
    ("VMRUN pending with an event", Case(control={"event_inj": 0x8000_0B0E, "event_inj_err": 2})),
]


@pytest.mark.parametrize(("code", "case"), BAD)
def test_one_change_gives_one_code(code: str, case: Case) -> None:
    assert codes(case) == [code]


@pytest.mark.parametrize("case", [case for _, case in HARMLESS], ids=[name for name, _ in HARMLESS])
def test_harmless_states_give_nothing(case: Case) -> None:
    assert codes(case) == []


@pytest.mark.parametrize("tcg", [set(), {"cpu/svn_npt"}, {"cpu/svm_guest"}, {"cpu/svn_npt", "cpu/svm_guest"}])
def test_tcg_svm_is_named_and_never_refused(tcg: set[str]) -> None:
    (finding,) = examine(None, GOOD.block, tcg)
    assert (finding.code, finding.severity) == ("tcg-svm", Severity.WARN)
    assert "TCG" in finding.text
    assert all(name in finding.text for name in tcg)


def test_a_vcpu_without_nested_state_gives_nothing() -> None:
    assert examine(None, block({"hflags": 0}), {"cpu/svn_npt"}) == []


def test_every_rule_has_a_row_and_a_code_of_its_own() -> None:
    all_codes = [rule.code for rule in RULES]
    assert len(set(all_codes)) == len(all_codes)
    assert {code for code, _ in BAD} | {"tcg-svm"} == set(all_codes)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in all_codes)


@pytest.mark.parametrize(("code", "case"), BAD)
def test_the_sentence_is_one_sentence_with_a_value(code: str, case: Case) -> None:
    (finding,) = examine(case.state, case.block, case.subsections)
    assert re.search(r"0x[0-9a-f]+", finding.text)
    assert finding.text.endswith(".")
    assert "{" not in finding.text
    assert re.match(r"(nested_state|control|l1|cpu)", finding.field)


def test_all_differing_registers_are_named_with_both_values() -> None:
    case = Case(cpu={"star": 0x77, "tr_selector": 0x48})
    (finding,) = examine(case.state, case.block, case.subsections)
    assert "tr selector is 0x40 in the page, 0x48 in the registers" in finding.text
    assert f"star is {L1_FIELDS['star']:#x} in the page, 0x77 in the registers" in finding.text


@pytest.mark.parametrize("register", registers(RegisterClass.VMLOAD))
def test_the_whole_vmload_class_is_compared(register: str) -> None:
    name = f"{register}_base" if register in SEGMENTS else register
    assert codes(replace(GOOD, l1={name: L1_FIELDS.get(name, 0) ^ 0x10})) == ["live-copy-differs"]


def test_independent_faults_are_all_reported() -> None:
    case = replace(GOOD, control={"asid": 0}, l1={"cr0": 0x11}, cpu={"efer": 0})
    assert codes(case) == ["l2-efer-svme", "asid", "l1-cr0-pg"]


def test_a_block_of_the_wrong_length_is_a_bug() -> None:
    with pytest.raises(BugError):
        examine(None, GOOD.block[:-1], ())


@settings(max_examples=2 * settings().max_examples)
@given(
    header=st.binary(min_size=8, max_size=8)
    | st.sampled_from([bytes.fromhex("0101000100001080"), bytes.fromhex("0103000100001080")]),
    child=st.none() | st.randoms(use_true_random=False).map(lambda r: r.randbytes(SIZE_SUBSECTION_SVM)),
    noise=st.randoms(use_true_random=False).map(lambda r: r.randbytes(cpu.BLOCK.size)),
)
def test_any_bytes_are_judged_without_an_exception(header: bytes, child: bytes | None, noise: bytes) -> None:
    for finding in examine(LegacyState.from_subsections(header, child), memoryview(noise), ()):
        assert finding.text
