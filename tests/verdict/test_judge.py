# SPDX-License-Identifier: GPL-2.0-or-later
"""One vCPU before one destination: what is said, and what is not known and said so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from qmpfilter.svm.annex import ANNEX_OFFSET, MAGIC
from qmpfilter.svm.legacy import FORMAT_VMX
from qmpfilter.svm.section import CpuSection
from qmpfilter.verdict.attempt import Attempt
from qmpfilter.verdict.checks import CHECKS
from qmpfilter.verdict.cpuid import FEATURES, Cpuid, CpuidRow
from qmpfilter.verdict.facts import HostFacts, QemuBinary
from qmpfilter.verdict.judge import Answer, Outcome, Verdict, judge, judge_stream
from qmpfilter.verdict.losses import LOSSES
from qmpfilter.verdict.rule import Rule, Stage
from qmpfilter.verdict.version import Version
from qmpfilter.wire import cpu
from tests.svm.states import Case, outside_l2

MAXPHYADDR = 48
_HIGHEST = CpuidRow(0x8000_0000, 0, 0, 0x8000_0021, 0, 0, 0)


def _cpuid(*without: str) -> Cpuid:
    """Every feature but some."""
    rows: dict[tuple[int, int], dict[str, int]] = {(0x8000_0008, 0): {"eax": MAXPHYADDR}}
    for name, at in FEATURES.items():
        if name not in without:
            registers = rows.setdefault((at.function, at.index), {})
            registers[at.register] = registers.get(at.register, 0) | 1 << at.bit
    empty = dict.fromkeys(("eax", "ebx", "ecx", "edx"), 0)
    return Cpuid((_HIGHEST, *(CpuidRow(*key, 1, **(empty | row)) for key, row in rows.items())))


def _host(kernel: str = "7.3.4", qemu: str = "11.1.3", **changes: Any) -> HostFacts:
    """A destination of which everything is known."""
    facts = HostFacts(
        kernel=Version.parse(kernel),
        parameters={"kvm_amd": {"nested": "1", "npt": "Y"}},
        nested_state_size=4224,
        supported_cpuid=_cpuid("EFER_LMSLE_MBZ"),
        qemu=(QemuBinary("/usr/bin/qemu-system-x86_64", Version.parse(qemu)),),
    )
    return replace(facts, **changes)


# The good state's L2 is in long mode, where PDPTRs are out of place.
GOOD = Case(
    subsections=frozenset({"cpu/nested_state"}), cpu={"cr0": 0x8000_0011, "efer": 0x1500, "cs_flags": 0xA0_9B00}
)


def _judge(case: Case, facts: HostFacts, subsections: Mapping[str, bytes] | None = None) -> Verdict:
    return judge(case.state, case.block, subsections or dict.fromkeys(case.subsections, b""), facts)


def _changed(**areas: Any) -> Case:
    """The good state with some fields changed."""
    if "cpu" in areas:
        areas["cpu"] = {**GOOD.cpu, **areas["cpu"]}
    return replace(GOOD, **areas)


def _codes(verdict: Verdict, answer: Answer) -> list[str]:
    return [reason.code for reason in verdict.reasons if reason.answer is answer]


KERNELS = ("5.10.262", "5.15.0", "6.1.192", "6.12.117", "7.2.12", "7.3.4")


@pytest.mark.parametrize("kernel", KERNELS)
def test_good_state_is_accepted(kernel: str) -> None:
    verdict = _judge(GOOD, _host(kernel))
    assert (verdict.outcome, verdict.reasons, verdict.silent) == (Outcome.ACCEPTED, (), False)


@pytest.mark.parametrize("kernel", KERNELS)
def test_state_outside_l2_is_accepted(kernel: str) -> None:
    case = replace(outside_l2(), subsections=frozenset({"cpu/nested_state"}), cpu={"hflags": 0, "efer": 0x1500})
    assert _judge(case, _host(kernel)).outcome is Outcome.ACCEPTED


# Code, what to change, and on which kernels it is refused; on the others it is not.
REFUSALS: list[tuple[str, dict[str, Any], set[str]]] = [
    ("vmrun-intercept", {"control": {"intercept_word4": 2}}, set(KERNELS)),
    ("asid", {"control": {"asid": 0}}, set(KERNELS)),
    ("nested-cr3", {"control": {"misc_ctl": 1, "nested_cr3": 1 << MAXPHYADDR}},
     {"6.1.192", "6.12.117", "7.2.12", "7.3.4"}),
    ("msrpm", {"control": {"msrpm_base_pa": (1 << MAXPHYADDR) - 0x1000}}, set(KERNELS) - {"5.10.262"}),
    ("iopm", {"control": {"iopm_base_pa": (1 << MAXPHYADDR) - 0x2000}}, set(KERNELS) - {"5.10.262"}),
    ("v-nmi", {"control": {"int_ctl": 1 << 26}}, {"6.12.117", "7.2.12", "7.3.4"}),
    ("event-inj-type", {"control": {"event_inj": 0x8000_0100}}, {"7.2.12", "7.3.4"}),
    ("event-inj-vector", {"control": {"event_inj": 0x8000_0302}}, {"7.2.12", "7.3.4"}),
    ("l1-cr0-pg", {"l1": {"cr0": 0x33}}, set(KERNELS)),
    ("l1-efer-lma", {"l1": {"efer": 0x1401}}, {"7.3.4"}),
    ("l1-cs", {"l1": {"cs_attrib": 0xE9B}}, {"6.1.192", "6.12.117", "7.2.12", "7.3.4"}),
    ("l1-cr4", {"l1": {"cr4": 1 << 31 | 0x20}}, set(KERNELS) - {"5.10.262"}),
    ("l1-efer", {"l1": {"efer": 1 << 40 | 0x1D01}}, set(KERNELS) - {"5.10.262"}),
    ("sregs-cr4", {"cpu": {"cr4": 1 << 31 | 0x20}}, set(KERNELS)),
    ("sregs-efer", {"cpu": {"efer": 1 << 40 | 0x1500}}, {"6.12.117", "7.2.12", "7.3.4"}),
    ("l2-efer-svme", {"cpu": {"efer": 0x500}}, set(KERNELS)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "change", "refusing"), REFUSALS, ids=[row[0] for row in REFUSALS])
@pytest.mark.parametrize("kernel", KERNELS)
def test_refusal_is_that_kernels(code: str, change: dict[str, Any], refusing: set[str], kernel: str) -> None:
    refused = _codes(_judge(_changed(**change), _host(kernel)), Answer.REFUSES)
    assert (code in refused) == (kernel in refusing)


@pytest.mark.parametrize(
    ("change", "kernel", "lost"),
    [
        ({"flags": 0x103}, "5.10.262", "run-pending-dropped"),
        ({"flags": 0x103}, "5.15.0", None),
        ({"flags": 0x001, "cpu": {"hflags2": 0}}, "5.10.262", "gif-not-restored"),
        ({"flags": 0x001, "cpu": {"hflags2": 0}}, "6.1.192", None),
        ({"control": {"event_inj": 0x8000_0480, "next_rip": 0x1000}}, "5.15.0", "next-rip-dropped"),
        ({"control": {"event_inj": 0x8000_0480, "next_rip": 0x1000}}, "6.1.192", None),
        ({"control": {"int_vector": 0x120}}, "7.3.4", "int-vector"),
        ({"control": {"int_vector": 0x120}}, "6.12.117", None),
        ({"control": {"misc_ctl2": 1}}, "7.3.4", "lbr"),
        ({"control": {"misc_ctl": 8}}, "6.1.192", "gmet-ignored"),
        ({"l1": {"dbgctl": 1}}, "6.1.192", "l1-lbr"),
        ({"l1": {"dbgctl": 1}}, "6.12.117", None),
        ({"l1": {"s_cet": 1}}, "6.12.117", "l1-cet"),
        ({"cpu": {"hflags": cpu.HF_GUEST | cpu.HF_SMM}}, "7.3.4", "smm-guest-mode"),
        ({"cpu": {"hflags": 0}}, "7.3.4", "l2-forgotten"),
        ({"cpu": {"hflags2": 0}}, "7.3.4", "gif-from-hflags2"),
    ],
)
def test_loss_is_that_kernels(change: dict[str, Any], kernel: str, lost: str | None) -> None:
    verdict = _judge(_changed(**change), _host(kernel))
    assert verdict.outcome is (Outcome.ACCEPTED if lost is None else Outcome.LOSS)
    assert _codes(verdict, Answer.LOSES) == ([] if lost is None else [lost])


@pytest.mark.parametrize(
    ("without", "change", "lost"),
    [
        ("XSAVE", {"intercept_word4": 1 | 1 << 13}, "intercept-xsetbv"),
        ("INVPCID", {"intercept_word5": 1 << 2}, "intercept-invpcid"),
        ("NPT", {"misc_ctl": 1}, "npt-cleared"),
        ("VGIF", {"int_ctl": 1 << 25}, "v-gif"),
    ],
)
def test_guest_without_a_feature_loses_what_needs_it(without: str, change: dict[str, int], lost: str) -> None:
    plain, lacking = (_host(guest_cpuid=_cpuid(*names)) for names in ((), (without,)))
    case = _changed(control=change, l1={"cr4": 0x20})
    assert _codes(_judge(case, lacking), Answer.LOSES) == [lost]
    assert _judge(case, plain).outcome is Outcome.ACCEPTED


# --- what QEMU does itself ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "subsections", "qemu", "code"),
    [
        ({"size": 0x40}, {}, "7.2.22", "size-header"),
        ({"size": 0x2080}, {}, "7.2.22", "size-capability"),
        ({"format": 2}, {}, "7.2.22", "format-unknown"),
        ({"flags": 0x100}, {}, "7.2.22", "guest-mode-inconsistent"),
        ({}, {"cpu/kvm_nested_state/svm2"}, "11.1.3", "native"),
        ({"format": FORMAT_VMX}, {"cpu/kvm_nested_state/vmx"}, "11.1.3", "vmx-child"),
        ({}, {"cpu/error_code"}, "10.0.13", "subsection-unknown"),
        ({}, {"cpu/kvm_nested_state/svm"}, "5.0", "subsection-unknown"),
    ],
)
def test_qemu_refuses_when_it_loads(change: dict[str, Any], subsections: set[str], qemu: str, code: str) -> None:
    verdict = _judge(_changed(**change), _host(qemu=qemu), dict.fromkeys({"cpu/nested_state", *subsections}, b""))
    assert verdict.outcome is Outcome.REFUSED
    first = verdict.reasons[0]
    assert (first.code, first.stage, verdict.silent) == (code, Stage.LOAD, False)


@pytest.mark.parametrize("rule", [*CHECKS, *LOSSES], ids=lambda rule: f"{rule.stage.name}-{rule.code}")
def test_no_sentence_names_a_version_that_is_not_known(rule: Rule) -> None:
    attempt = Attempt(GOOD.state, GOOD.block, dict.fromkeys(GOOD.subsections, b""), HostFacts())
    assert "None" not in rule.sentence(attempt)


def test_a_subsection_that_a_qemu_of_unknown_version_might_not_know() -> None:
    verdict = _judge(GOOD, replace(_host(), qemu=()), {"cpu/nested_state": b"", "cpu/error_code": b""})
    (reason,) = (reason for reason in verdict.reasons if reason.code == "subsection-unknown")
    assert (reason.answer, reason.missing) == (Answer.MIGHT_REFUSE, ("QEMU's version",))
    assert "that the destination's QEMU does not know" in reason.text


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"kvm_amd": {"nested": "0"}}},
        {"parameters": {}, "nested_state_size": 0},
        {"guest_cpuid": _cpuid("SVM")},
    ],
)
def test_destination_that_cannot_nest_is_refused_by_qemu_and_not_asked(changes: dict[str, Any]) -> None:
    verdict = _judge(_changed(control={"asid": 0}), _host(**changes))
    assert "no-nesting" in _codes(verdict, Answer.REFUSES)
    assert "asid" not in _codes(verdict, Answer.REFUSES)


@pytest.mark.parametrize(
    ("kernel", "size", "refused"),
    [
        ("2.6.32", None, True),
        ("4.19.300", None, True),
        ("5.4", None, True),
        ("5.7.19", None, True),
        ("5.8.0", None, False),
        ("5.8", None, False),
        ("5.10.262", None, False),
        # A vendor's: what KVM says is what counts.
        ("5.4", 4224, False),
    ],
)
def test_kernel_without_nested_state_for_svm_cannot_nest(kernel: str, size: int | None, refused: bool) -> None:
    verdict = _judge(_changed(), _host(kernel, nested_state_size=size))
    assert _codes(verdict, Answer.REFUSES) == (["no-nesting"] if refused else [])
    if refused:
        assert f"kernel {kernel} has none for SVM, as only Linux 5.8 and newer do" in verdict.reasons[0].text


def test_guest_that_never_nested_goes_to_any_kernel() -> None:
    block = replace(GOOD, cpu={"hflags": 0, "efer": 0x500}).block
    assert judge(None, block, {}, _host("5.4", nested_state_size=None)).outcome is Outcome.ACCEPTED


@pytest.mark.parametrize(("qemu", "silent"), [("7.2.22", True), ("8.1", True), ("8.2.0", False), ("11.1.3", False)])
def test_old_qemu_runs_on_after_a_refusal(qemu: str, silent: bool) -> None:
    assert _judge(_changed(control={"asid": 0}), _host(qemu=qemu)).silent is silent


def test_without_qemus_version_silence_is_not_known() -> None:
    assert _judge(_changed(control={"asid": 0}), replace(_host(), qemu=())).silent is None


def test_vcpu_without_nested_state_is_put_all_the_same() -> None:
    block = replace(GOOD, cpu={"hflags": 0, "hflags2": 0, "efer": 0x500}).block
    assert _codes(judge(None, block, {}, _host("6.12.117")), Answer.REFUSES) == ["gif-without-svme"]
    assert judge(None, block, {}, _host("7.3.4")).outcome is Outcome.ACCEPTED


# --- what is not known -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "unknown", "code", "missing"),
    [
        (GOOD, {"parameters": {}, "nested_state_size": None, "supported_cpuid": None}, "no-nesting",
         ("whether KVM nests",)),
        (_changed(control={"misc_ctl": 1}),
         {"parameters": {"kvm_amd": {"nested": "1"}}, "kernel": Version(6, 1, 192)},
         "npt", ("kvm_amd's npt parameter",)),
        (_changed(control={"event_inj": 0x8000_0100}), {"kernel": None}, "event-inj-type", ("the kernel's version",)),
        (_changed(l1={"cs_attrib": 0xE9B}), {"kernel": Version(6, 1)}, "l1-cs", ("the stable level of kernel 6.1",)),
        (_changed(l1={"cs_attrib": 0xE9B}), {"kernel": Version(6, 1, 173)}, "l1-cs",
         ("what kernel 6.1.173 carries",)),
        (_changed(l1={"cr4": 1 << 20 | 0x20}), {"supported_cpuid": None}, "l1-cr4", ("the guest's CPUID",)),
        (_changed(vmcb_pa=1 << 40), {"supported_cpuid": None}, "vmcb-pa", ("the guest's MAXPHYADDR",)),
    ],
)  # fmt: skip
def test_missing_fact_is_named(case: Case, unknown: dict[str, Any], code: str, missing: tuple[str, ...]) -> None:
    verdict = _judge(case, replace(_host(), **unknown))
    assert verdict.outcome is Outcome.UNKNOWN
    (reason,) = (reason for reason in verdict.reasons if reason.code == code)
    assert (reason.answer, reason.missing) == (Answer.MIGHT_REFUSE, missing)


def test_possible_loss_is_no_doubt_about_acceptance() -> None:
    case = _changed(control={"intercept_word4": 1 | 1 << 6}, l1={"cr4": 0x20})
    verdict = _judge(case, replace(_host(), supported_cpuid=None))
    assert verdict.outcome is Outcome.PERHAPS_LOSS
    assert _codes(verdict, Answer.MIGHT_LOSE) == ["intercept-skinit"]


def test_damaged_annex_is_told_and_accepted() -> None:
    state = GOOD.state
    page = bytearray(state.page or b"")
    page[ANNEX_OFFSET : ANNEX_OFFSET + len(MAGIC)] = MAGIC
    verdict = judge(replace(state, page=bytes(page)), GOOD.block, {"cpu/nested_state": b""}, _host())
    assert verdict.outcome is Outcome.LOSS
    assert _codes(verdict, Answer.LOSES) == ["svm2-record"]


def test_what_is_known_to_be_refused_is_refused_whatever_else_is_not_known() -> None:
    assert _judge(_changed(control={"asid": 0}), HostFacts()).outcome is Outcome.REFUSED


@pytest.mark.parametrize(
    ("address", "facts", "illegal"),
    [
        (1 << 32, {"maxphyaddr": 32}, True),
        ((1 << 32) - 0x1000, {"maxphyaddr": 32}, False),
        (1 << 40, {"maxphyaddr": 40, "supported_cpuid": None}, True),
        (1 << 47, {}, False),
        (1 << 48, {}, True),
        (1 << 52, {"supported_cpuid": None}, True),
        (0x1001, {"supported_cpuid": None}, True),
    ],
)
def test_width_of_the_guests_addresses(address: int, facts: dict[str, Any], illegal: bool) -> None:
    refused = _codes(_judge(_changed(vmcb_pa=address), _host(**facts)), Answer.REFUSES)
    assert ("vmcb-pa" in refused) is illegal


def test_answer_names_what_it_rests_on() -> None:
    note = "The guest is taken to have the CPUID features and address width that the host supports."
    assert _judge(GOOD, _host()).notes == (note,)
    assert _judge(GOOD, _host(guest_cpuid=_cpuid())).notes == ()


@pytest.mark.parametrize(
    ("kernel", "noted"), [("6.1.192", False), ("6.1.193", True), ("6.6.50", True), ("7.4.0", True)]
)
def test_kernel_that_nobody_read_is_noted(kernel: str, noted: bool) -> None:
    notes = _judge(GOOD, _host(kernel, guest_cpuid=_cpuid())).notes
    assert any(f"Kernel {kernel} itself was not read" in note for note in notes) is noted


@pytest.mark.parametrize(("qemu", "noted"), [("7.2", False), ("11.1.3", False), ("11.2", True), ("99.1", True)])
def test_qemu_that_nobody_read_is_noted(qemu: str, noted: bool) -> None:
    notes = _judge(GOOD, _host(qemu=qemu, guest_cpuid=_cpuid())).notes
    assert notes == ((f"QEMU {qemu} itself was not read; the rules follow those that were, up to 11.1.",) * noted)


# --- streams, and the tables -------------------------------------------------------------------


def _section(index: int, case: Case) -> CpuSection:
    return CpuSection(index, case.block, dict.fromkeys(case.subsections, b""), case.state, False)


def test_stream_is_as_its_worst_vcpu() -> None:
    bad, lossy = _changed(control={"asid": 0}), _changed(control={"misc_ctl2": 1})
    facts = _host()
    assert judge_stream([], facts).outcome is None
    assert judge_stream([_section(0, GOOD), _section(3, lossy)], facts).outcome is Outcome.LOSS
    verdict = judge_stream([_section(0, GOOD), _section(3, bad), _section(1, lossy)], facts)
    assert verdict.outcome is Outcome.REFUSED
    assert {index: one.outcome for index, one in verdict.vcpus.items()} == {
        0: Outcome.ACCEPTED, 3: Outcome.REFUSED, 1: Outcome.LOSS,
    }  # fmt: skip


def test_rules_of_one_kernel_have_one_meaning_each() -> None:
    for version in map(Version.parse, KERNELS):
        here = [(rule.code, rule.stage) for rule in (*CHECKS, *LOSSES) if rule.kernels.have_it(version)]
        assert len(here) == len(set(here))


@pytest.mark.parametrize("rule", [*CHECKS, *LOSSES], ids=lambda rule: f"{rule.code}-{rule.stage.name}")
def test_every_sentence_can_be_said(rule: Any) -> None:
    sentence = rule.sentence(Attempt(GOOD.state, GOOD.block, {}, _host()))
    assert sentence.endswith(".")
    assert "{" not in sentence
