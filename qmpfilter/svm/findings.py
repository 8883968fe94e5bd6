# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong, or will be lost, in one vCPU's nested state, as far as its own section tells.

:func:`examine` walks tables of rules. A rule is a row: a stable code, a condition, and one sentence.
Where only some kernels check, the strictest counts: no hardware enters such a state either. What depends on
one destination (its CPUID, physical address width, parameters) is not judged here.

Sources: the checks of Linux 5.8 to 7.3 arch/x86/kvm/svm/nested.c, svm_set_nested_state,
nested_vmcb_check_controls and __nested_vmcb_check_save; QEMU 10.2.2 target/i386/machine.c
(nested_state_post_load, cpu_post_load) and target/i386/kvm/kvm.c (kvm_put_nested_state).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from typing import Final, NamedTuple

from qmpfilter.svm.legacy import FORMAT_SVM, FORMAT_VMX, SIZE_L1, SIZE_L2, SVM_FLAGS, Era, LegacyState
from qmpfilter.svm.view import View
from qmpfilter.svm.vmcb import (
    CONTROL,
    CONTROL_SIZE,
    PAGE_SIZE,
    MiscCtl,
    MiscCtl2,
)
from qmpfilter.value_class import value_class
from qmpfilter.wire import cpu

__all__ = ["RULES", "Finding", "Rule", "Severity", "broken", "examine", "judge"]

# Architectural bits: APM vol. 2 sections 3.1 (CR0, CR4, EFER, RFLAGS) and 13.1 (DR7).
_CR0_PE = 1 << 0
_CR0_NW = 1 << 29
_CR0_CD = 1 << 30
_CR0_PG = 1 << 31
_CR4_PAE = 1 << 5
_CR4_CET = 1 << 23
_RFLAGS_VM = 1 << 17
_EFER_LME = 1 << 8
_EFER_LMA = 1 << 10
_EFER_SVME = 1 << 12
_DR7_FIXED = 1 << 10
# VMCB attribute bits L and D/B.
_L_AND_D = 1 << 9 | 1 << 10
# No x86 CPU has physical addresses beyond bit 51; bits 61 and 62 are LAM's and may be legal.
_CR3_NEVER = 0x9FF0_0000_0000_0000
_LOW_32 = 0xFFFF_FFFF

_INTERCEPT_VMRUN = 1 << 0
# As plain integers: an operation on IntFlag costs a microsecond, and rules run while the guest stands still.
_SEV = int(MiscCtl.SEV | MiscCtl.SEV_ES)
_V_LBR = int(MiscCtl2.V_LBR)
_HYPERV: Final = slice(CONTROL.offset("hv_enlightenments_control"), CONTROL_SIZE)
_NO_HYPERV: Final = bytes(CONTROL_SIZE - _HYPERV.start)


class Severity(Enum):
    """What a finding asks for."""

    REFUSE = "refuse"
    """Damaged or contradictory, or state that a kernel of the supported range rejects or corrupts."""
    WARN = "warn"
    """Legal, but something is lost or cannot be verified, as it is without a filter."""


@value_class
class Finding:
    """One thing found.

    :param code: stable kebab-case name
    :param severity: what it asks for
    :param text: one sentence with the values
    :param field: where: ``nested_state.``, ``control.``, ``l1.`` (L1's save area) or ``cpu.`` and the
        field's name there
    """

    code: str
    severity: Severity
    text: str
    field: str


class Rule(NamedTuple):
    """One row: `broken` is the condition, `text` the sentence, formatted with the view as ``v``."""

    code: str
    severity: Severity
    field: str
    broken: Callable[[View], bool | int]
    text: str

    def finding(self, view: View) -> Finding:
        """The finding of this rule for a view in which it is broken."""
        return Finding(self.code, self.severity, self.text.format(v=view), self.field)


_REFUSE, _WARN = Severity.REFUSE, Severity.WARN

# fmt: off
_WITHOUT_STATE: Final = (
    Rule("tcg-svm", _WARN, "cpu.hflags",
         lambda v: v.hf_guest,
         "hflags {v.cpu.hflags:#x} has bit 21 (L2 active), and the section has no cpu/nested_state but "
         "{v.tcg_subsections}: L2 runs under TCG's own SVM emulation, which no destination with KVM loads."),
)

_ANY_FORMAT: Final = (
    Rule("vmx", _WARN, "nested_state.format",
         lambda v: v.state.format == FORMAT_VMX,
         "Nested state has format 0, Intel VMX (flags {v.state.flags:#x}, size {v.state.size:#x}), which is "
         "not decoded."),
    Rule("format", _REFUSE, "nested_state.format",
         lambda v: v.state.format not in (FORMAT_SVM, FORMAT_VMX),
         "Nested state has the unknown format {v.state.format:#x}; SVM is 0x1, VMX is 0x0."),
)

_SVM: Final = (
    Rule("flags", _REFUSE, "nested_state.flags",
         lambda v: v.state.flags & ~SVM_FLAGS,
         "Nested state flags {v.state.flags:#x} have bits that SVM does not allow (allowed: 0x103)."),
    Rule("run-pending-without-guest-mode", _REFUSE, "nested_state.flags",
         lambda v: v.state.run_pending and not v.state.guest_mode,
         "Nested state flags {v.state.flags:#x} have RUN_PENDING (0x2) without GUEST_MODE (0x1)."),
    Rule("size", _REFUSE, "nested_state.size",
         lambda v: v.state.size != SIZE_L2 if v.state.guest_mode else v.state.size < SIZE_L1,
         "Nested state size {v.state.size:#x} does not fit flags {v.state.flags:#x}: 0x1080 is needed while "
         "L2 is active, at least 0x80 otherwise."),
    Rule("page-missing", _REFUSE, "nested_state.vmcb12",
         lambda v: v.state.guest_mode and v.state.page is None,
         "L2 is active (flags {v.state.flags:#x}), but the VMCB page, cpu/kvm_nested_state/svm, is missing."),
    Rule("page-unused", _WARN, "nested_state.vmcb12",
         lambda v: not v.state.guest_mode and (v.state.page is not None or v.state.size > SIZE_L1),
         "L2 is not active (flags {v.state.flags:#x}), so KVM ignores what follows the header "
         "(size {v.state.size:#x}, vmcb_pa {v.state.vmcb_pa:#x})."),
    Rule("guest-mode-disagrees", _REFUSE, "cpu.hflags",
         lambda v: v.state.guest_mode != v.hf_guest,
         "GUEST_MODE in nested state flags {v.state.flags:#x} and bit 21 of hflags {v.cpu.hflags:#x} "
         "disagree on whether L2 is active."),
    Rule("gif-disagrees", _REFUSE, "cpu.hflags2",
         lambda v: v.state.gif != v.hf2_gif,
         "GIF_SET in nested state flags {v.state.flags:#x} and bit 0 of hflags2 {v.cpu.hflags2:#x} disagree; "
         "the destination's QEMU would take the latter."),
)

_GUEST: Final = (
    Rule("smm-guest-mode", _REFUSE, "cpu.hflags",
         lambda v: v.cpu.hflags & cpu.HF_SMM,
         "hflags {v.cpu.hflags:#x} has bit 19 (SMM) while L2 is active; KVM would silently leave L2."),
    Rule("l2-efer-svme", _REFUSE, "cpu.efer",
         lambda v: not v.cpu.efer & _EFER_SVME,
         "L2's EFER {v.cpu.efer:#x} has SVME (0x1000) clear; KVM then refuses to enter L2."),
    Rule("l2-cr0-nw", _REFUSE, "cpu.cr0",
         lambda v: v.cpu.cr0 & _CR0_NW and not v.cpu.cr0 & _CR0_CD,
         "L2's CR0 {v.cpu.cr0:#x} has NW (0x20000000) without CD (0x40000000)."),
    Rule("cet-missing", _REFUSE, "cpu.cr4",
         lambda v: v.cpu.cr4 & _CR4_CET and "cpu/cet" not in v.subsections,
         "L2's CR4 {v.cpu.cr4:#x} has CET (0x800000), but the stream has no cpu/cet with its state."),
    Rule("run-pending", _WARN, "nested_state.flags",
         lambda v: v.state.run_pending,
         "Nested state flags {v.state.flags:#x} have RUN_PENDING (0x2): L2 has not executed an instruction "
         "since VMRUN, and an event that L1 injects is still to be delivered."),
    Rule("error-code-missing", _WARN, "cpu.exception_nr",
         lambda v: v.cpu.exception_nr >= 0 and v.cpu.has_error_code and "cpu/error_code" not in v.subsections,
         "An exception, vector {v.cpu.exception_nr:#x}, with an error code is pending or injected, but the "
         "stream has no cpu/error_code (QEMU 10.2): the destination may deliver a wrong one."),
)

_PAGE: Final = (
    Rule("vmcb-pa", _REFUSE, "nested_state.vmcb_pa",
         lambda v: not v.state.vmcb_pa or v.state.vmcb_pa % PAGE_SIZE,
         "vmcb_pa {v.state.vmcb_pa:#x} is not the address of a page that can hold VMCB12."),
    # nested_vmcb_check_controls
    Rule("vmrun-intercept", _REFUSE, "control.intercept_word4",
         lambda v: not v.control.intercept_word4 & _INTERCEPT_VMRUN,
         "VMCB12 does not intercept VMRUN (word 4 is {v.control.intercept_word4:#x}, bit 0 clear)."),
    Rule("asid", _REFUSE, "control.asid",
         lambda v: not v.control.asid,
         "VMCB12's ASID is {v.control.asid:#x}; KVM and hardware refuse 0."),
    Rule("sev", _REFUSE, "control.misc_ctl",
         lambda v: v.control.misc_ctl & _SEV,
         "VMCB12's misc_ctl {v.control.misc_ctl:#x} asks for SEV (0x2) or SEV-ES (0x4), which KVM does not "
         "nest."),
    # __nested_vmcb_check_save on L1's half
    Rule("l1-cr0-pg", _REFUSE, "l1.cr0",
         lambda v: ~v.l1.cr0 & (_CR0_PG | _CR0_PE),
         "L1's CR0 {v.l1.cr0:#x} has PG (0x80000000) or PE (0x1) clear."),
    Rule("l1-cr0-nw", _REFUSE, "l1.cr0",
         lambda v: v.l1.cr0 & _CR0_NW and not v.l1.cr0 & _CR0_CD,
         "L1's CR0 {v.l1.cr0:#x} has NW (0x20000000) without CD (0x40000000)."),
    Rule("l1-cr0-high", _REFUSE, "l1.cr0",
         lambda v: v.l1.cr0 > _LOW_32,
         "L1's CR0 {v.l1.cr0:#x} has bits above 31."),
    Rule("l1-rflags-vm", _REFUSE, "l1.rflags",
         lambda v: v.l1.rflags & _RFLAGS_VM,
         "L1's RFLAGS {v.l1.rflags:#x} has VM (0x20000), which cannot be where VMRUN was executed."),
    Rule("l1-efer-svme", _REFUSE, "l1.efer",
         lambda v: not v.l1.efer & _EFER_SVME,
         "L1's EFER {v.l1.efer:#x} has SVME (0x1000) clear."),
    Rule("l1-efer-lma", _REFUSE, "l1.efer",
         lambda v: v.l1.efer & _EFER_LMA and not v.l1.efer & _EFER_LME,
         "L1's EFER {v.l1.efer:#x} has LMA (0x400) without LME (0x100)."),
    Rule("l1-dr6-high", _REFUSE, "l1.dr6",
         lambda v: v.l1.dr6 > _LOW_32,
         "L1's DR6 {v.l1.dr6:#x} has bits above 31."),
    Rule("l1-dr7-high", _REFUSE, "l1.dr7",
         lambda v: v.l1.dr7 > _LOW_32,
         "L1's DR7 {v.l1.dr7:#x} has bits above 31."),
    Rule("l1-cr4-pae", _REFUSE, "l1.cr4",
         lambda v: v.long_mode_l1 and not v.l1.cr4 & _CR4_PAE,
         "L1's CR4 {v.l1.cr4:#x} has PAE (0x20) clear in long mode (EFER {v.l1.efer:#x})."),
    Rule("l1-cr3", _REFUSE, "l1.cr3",
         lambda v: v.long_mode_l1 and v.l1.cr3 & _CR3_NEVER,
         "L1's CR3 {v.l1.cr3:#x} has address bits above 51."),
    Rule("l1-cs", _REFUSE, "l1.cs_attrib",
         lambda v: v.long_mode_l1 and v.l1.cs_attrib & _L_AND_D == _L_AND_D,
         "L1's CS attributes {v.l1.cs_attrib:#x} have both L (0x200) and D (0x400) in long mode."),
    # Legal, with losses.
    Rule("vmcb-pa-rax", _WARN, "l1.rax",
         lambda v: v.state.vmcb_pa not in (v.l1.rax, v.l1.rax & _LOW_32),
         "L1's RAX {v.l1.rax:#x} is not vmcb_pa {v.state.vmcb_pa:#x}, VMRUN's operand: the page may belong "
         "to another VMRUN."),
    Rule("dr7-guess", _WARN, "cpu.dr7",
         lambda v: v.cpu.dr7 == v.l1.dr7 and v.cpu.dr7 | _DR7_FIXED != _DR7_FIXED,
         "The section's DR7 {v.cpu.dr7:#x} equals L1's: KVM probably reports L1's value for L2's, and L2's "
         "own is then lost."),
    Rule("lbr", _WARN, "control.misc_ctl2",
         lambda v: v.control.misc_ctl2 & _V_LBR,
         "VMCB12's misc_ctl2 {v.control.misc_ctl2:#x} virtualizes LBR (0x1): L2's DBGCTL and branch records "
         "are not in the stream and will be lost."),
    Rule("hyperv", _WARN, "control.hv_enlightenments_control",
         lambda v: v.state.page is not None and v.state.page[_HYPERV] != _NO_HYPERV,
         "VMCB12 has Hyper-V enlightenments (control {v.control.hv_enlightenments_control:#x}, VP "
         "{v.control.hv_vp_id:#x}), which KVM does not restore before the next VMRUN."),
    Rule("hsave-era", _WARN, "l1.tr_attrib",
         lambda v: v.era is Era.HSAVE,
         "L1's save area has no VMLOAD class registers (TR attributes {v.l1.tr_attrib:#x}), as Linux up to "
         "5.11 writes it: page and registers cannot be checked against each other."),
    Rule("era-unknown", _WARN, "l1.tr_attrib",
         lambda v: v.era is Era.UNKNOWN,
         "L1's save area has TR attributes {v.l1.tr_attrib:#x} but other VMLOAD class registers, as no known "
         "kernel writes it."),
    Rule("live-copy-differs", _WARN, "l1",
         lambda v: bool(v.live_differing),
         "The VMCB page and the vCPU's registers are not of one instant: {v.live_differences}."),
)
# fmt: on

# A table counts where its condition holds; conditions go from the envelope inwards.
_TABLES: Final[tuple[tuple[Callable[[View], bool], tuple[Rule, ...]], ...]] = (
    (lambda v: v.nested is None, _WITHOUT_STATE),
    (lambda v: v.nested is not None, _ANY_FORMAT),
    (lambda v: v.nested is not None and v.nested.format == FORMAT_SVM, _SVM),
    (lambda v: v.svm_guest, _GUEST),
    (lambda v: v.svm_guest and v.state.page is not None, _PAGE),
)

RULES: Final = tuple(rule for _, rules in _TABLES for rule in rules)
"""Every rule, for listing; each code occurs once."""

_BY_CODE: Final = {rule.code: rule for rule in RULES}


def examine(state: LegacyState | None, block: bytes | memoryview, subsections: Collection[str]) -> list[Finding]:
    """Everything to refuse or to warn of in one vCPU's section, in the order of :data:`RULES`.

    :param state: its nested state, None when the section has no ``cpu/nested_state``
    :param block: the section's fixed field block, 1817 bytes
    :param subsections: full names of the section's subsections, for example ``cpu/error_code``
    :raises BugError: `block` has the wrong length
    """
    return judge(View(state, block, subsections))


def judge(view: View) -> list[Finding]:
    """What :func:`examine` gives, of a view that is at hand."""
    return [_BY_CODE[code].finding(view) for code in broken(view)]


def broken(view: View) -> tuple[str, ...]:
    """The codes of what :func:`judge` gives. The rules are walked once for a view."""
    if view.broken is None:
        view.broken = tuple(
            [rule.code for applies, rules in _TABLES if applies(view) for rule in rules if rule.broken(view)]
        )
    return view.broken
