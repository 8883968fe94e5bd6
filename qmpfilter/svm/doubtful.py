# SPDX-License-Identifier: GPL-2.0-or-later
"""What legacy state does not tell for certain: L2's DR7, its PAT, LBR, and two fields of the control area.

The page of VMCB12 in guest memory, where it was read, settles some of it: L1 wrote it before VMRUN, and KVM
writes it again only at #VMEXIT. So it holds what L1 gave L2, and nothing that L2 changed since.

Sources: Linux 6.1 to 7.3 arch/x86/kvm/svm/nested.c (nested_vmcb02_prepare_save, nested_svm_vmexit) and
svm.c (svm_set_dr7, svm_sync_dirty_debug_regs), and streams of 6.1, 6.12 and 7.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from qmpfilter.errors import BugError
from qmpfilter.layout import Codec, Fields
from qmpfilter.svm.findings import Finding, Severity
from qmpfilter.svm.legacy import Era
from qmpfilter.svm.provenance import Confidence, FieldFinding
from qmpfilter.svm.view import View
from qmpfilter.svm.vmcb import CONTROL, PAGE_SIZE, SAVE, SAVE_OFFSET, MiscCtl, MiscCtl2, RegisterClass, registers

__all__ = ["LBR", "Judged", "Memory", "control_doubts", "dr7", "g_pat", "lbr"]

_DR7_FIXED = 1 << 10
# intercept_dr: the high half is writes.
_INTERCEPT_DR7_WRITE = 1 << 16 + 7
# As plain integers: an operation on IntFlag costs a microsecond.
_NP, _V_LBR = int(MiscCtl.NP), int(MiscCtl2.V_LBR)

_EXACT, _GUESSED = Confidence.EXACT, Confidence.GUESSED


class Judged(NamedTuple):
    """A value for the new state, and how exact it is."""

    value: int
    finding: FieldFinding


# --- VMCB12 in guest memory --------------------------------------------------------------------

# What L1 writes before VMRUN, KVM keeps, and L2 cannot change; KVM drops the low bits of the two maps.
_LOW_12 = PAGE_SIZE - 1
_IDENTITY: Final[Mapping[str, int]] = {
    "tsc_offset": ~0,
    "asid": ~0,
    "iopm_base_pa": ~_LOW_12,
    "msrpm_base_pa": ~_LOW_12,
    "nested_cr3": ~0,
}
_WANTED_CONTROL: Final = Codec(CONTROL, _IDENTITY)
_WANTED_SAVE: Final = Codec(SAVE, ("dr7", "g_pat"))


@dataclass(frozen=True)
class Memory:
    """VMCB12 as it stands in guest memory at vmcb_pa."""

    control: Fields
    save: Fields

    @classmethod
    def read(cls, page: bytes) -> Memory:
        """:raises BugError: `page` is not of 4096 bytes"""
        if len(page) != PAGE_SIZE:
            raise BugError(f"VMCB12: a page of {PAGE_SIZE} bytes expected, {len(page)} given")
        return cls(_WANTED_CONTROL.read(page), _WANTED_SAVE.read(page, SAVE_OFFSET))

    def foreign(self, view: View) -> Finding | None:
        """A warning if this is not the VMCB12 that L2 runs with, and so tells nothing of it."""
        for name, mask in _IDENTITY.items():
            kept, here = getattr(view.control, name), getattr(self.control, name)
            if (kept ^ here) & mask:
                text = (
                    f"The page at vmcb_pa {view.state.vmcb_pa:#x} in guest memory is not L2's VMCB12 ({name} is "
                    f"{here:#x} there, {kept:#x} in nested state) and was not used."
                )
                return Finding("memory-differs", Severity.WARN, text, f"control.{name}")
        return None


# --- DR7 ---------------------------------------------------------------------------------------


def _dr7(confidence: Confidence, why: str) -> FieldFinding:
    return FieldFinding("vmcb12_save.dr7", confidence, why)


_DR7_AGREED = _dr7(_EXACT, "the vCPU's register and VMCB12 in guest memory agree")
_DR7_UNTOUCHED = _dr7(_EXACT, "from VMCB12 in guest memory: L2 could not write DR7 since VMRUN")
_DR7_WRITTEN = _dr7(_EXACT, "the vCPU's register; it is not L1's, so KVM took it from L2")
_DR7_LIKELY = _dr7(
    _GUESSED, "from VMCB12 in guest memory: the vCPU's register is L1's, unless L2 wrote that very value"
)
_DR7_UNKNOWN = _dr7(_GUESSED, "the vCPU's register, which is L1's unless L2 wrote DR7 since VMRUN")


def dr7(view: View, memory: Memory | None) -> Judged:
    """L2's DR7.

    VMRUN loads VMCB12's DR7 into vmcb02 but not into vcpu->arch.dr7, and the latter is what
    KVM_GET_DEBUGREGS gives. It stays L1's value until L2 touches a debug register. In era VMCB01 the page
    holds L1's value, which tells the two cases apart, unless L2 wrote the same as L1 had.
    """
    section, of_l1 = view.cpu.dr7 | _DR7_FIXED, view.l1.dr7 | _DR7_FIXED
    written = view.era is Era.VMCB01 and section != of_l1
    if memory is None:
        return Judged(section, _DR7_WRITTEN if written else _DR7_UNKNOWN)
    given = memory.save.dr7 | _DR7_FIXED
    if given == section:
        return Judged(section, _DR7_AGREED)
    if view.control.intercept_dr & _INTERCEPT_DR7_WRITE or view.state.run_pending:
        return Judged(given, _DR7_UNTOUCHED)
    if written:
        return Judged(section, _DR7_WRITTEN)
    return Judged(given, _DR7_LIKELY) if view.era is Era.VMCB01 else Judged(section, _DR7_UNKNOWN)


# --- PAT ---------------------------------------------------------------------------------------


def _g_pat(confidence: Confidence, why: str) -> FieldFinding:
    return FieldFinding("vmcb12_save.g_pat", confidence, why)


_PAT_WITHOUT_NP = _g_pat(
    Confidence.RECOMPUTED, "IA32_PAT, which L2 uses: VMCB12's g_pat means nothing without nested paging"
)
_PAT_AGREED = _g_pat(_EXACT, "IA32_PAT and VMCB12 in guest memory agree")
_PAT_SHARED = _g_pat(
    _GUESSED, "IA32_PAT, which L2 uses unless KVM gives it its own; VMCB12 in guest memory has another"
)
_PAT_UNKNOWN = _g_pat(_GUESSED, "IA32_PAT, which L2 uses unless KVM gives it its own")


def g_pat(view: View, memory: Memory | None) -> Judged:
    """L2's PAT: the vCPU's IA32_PAT, always.

    KVM shares it between L1 and L2 and ignores VMCB12's, unless userspace disabled
    KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT (Linux 7.2), which no QEMU does; so memory confirms the value or
    not, and never replaces it.
    """
    pat = view.cpu.pat
    if not view.control.misc_ctl & _NP:
        return Judged(pat, _PAT_WITHOUT_NP)
    if memory is None:
        return Judged(pat, _PAT_UNKNOWN)
    return Judged(pat, _PAT_AGREED if memory.save.g_pat == pat else _PAT_SHARED)


# --- LBR, next_rip, int_state ------------------------------------------------------------------

LBR: Final = registers(RegisterClass.VMRUN_LBR)
"""Registers that QEMU does not carry; they are 0 in the new state."""

_LBR_LOST: Final = tuple(
    FieldFinding(f"vmcb12_save.{name}", Confidence.LOST, "QEMU does not carry it, and L2 has LBR virtualized")
    for name in LBR
)
_LBR_UNUSED: Final = tuple(
    FieldFinding(f"vmcb12_save.{name}", Confidence.RECOMPUTED, "0: VMCB12 does not virtualize LBR") for name in LBR
)


def lbr(view: View) -> tuple[FieldFinding, ...]:
    """Of the registers in :data:`LBR`."""
    return _LBR_LOST if view.control.misc_ctl2 & _V_LBR else _LBR_UNUSED


_STALE = "of now or of VMRUN: kernels differ (Linux 7.1 and fixes to 5.10, 6.1 and 6.12), and a stream does not tell"
_PENDING = "of VMRUN, which is still pending"
_DOUBTED = ("vmcb12_control.next_rip", "vmcb12_control.int_state")
_CONTROL_STALE: Final = tuple(FieldFinding(name, _GUESSED, _STALE) for name in _DOUBTED)
_CONTROL_PENDING: Final = tuple(FieldFinding(name, _EXACT, _PENDING) for name in _DOUBTED)
_CONTROL_PENDING_WITHOUT_NRIPS: Final = (
    FieldFinding(_DOUBTED[0], _GUESSED, "0: no NRIPS, or a kernel before 6.1, which does not carry it"),
    _CONTROL_PENDING[1],
)


def control_doubts(view: View) -> tuple[FieldFinding, ...]:
    """Of next_rip and int_state, which stand in the page as the kernel gave them."""
    if not view.state.run_pending:
        return _CONTROL_STALE
    return _CONTROL_PENDING if view.control.next_rip else _CONTROL_PENDING_WITHOUT_NRIPS
