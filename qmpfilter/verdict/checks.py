# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a destination refuse, in the order in which it is met: QEMU's own checks, then the kernel's.

A release list ends where sources were read: a point with three numbers is a stable level that was looked at.

Sources: QEMU 7.2 target/i386/machine.c and kvm/kvm.c, migration/vmstate.c; Linux 5.10.223, 5.10.262, 6.1.170,
6.1.176, 6.1.187, 6.1.192, 6.12.94, 6.12.111, 6.12.113, 6.12.115, 6.12.117, 6.12.118, 7.2.12 and 7.3.4 arch/x86/kvm
as Debian has them.
"""

from __future__ import annotations

import functools
from typing import Final

from qmpfilter.svm.findings import broken
from qmpfilter.svm.legacy import FORMAT_SVM, FORMAT_VMX, SIZE_L1, SIZE_L2, SVM_FLAGS, StateFlags
from qmpfilter.svm.vmcb import EXCEPTIONS, PAGE_SIZE, IntCtl, MiscCtl
from qmpfilter.verdict.attempt import Attempt
from qmpfilter.verdict.rule import Met, Rule, Stage, from_findings, that_may_speak
from qmpfilter.verdict.ternary import Ternary, all_of, any_of, negated
from qmpfilter.verdict.version import Releases, Version
from qmpfilter.wire import cpu

__all__ = ["CHECKS", "SUBSECTIONS_SINCE", "applicable", "met_by_kernel"]

# Architectural bits: APM vol. 2 sections 3.1 (CR0, CR4, EFER) and 15.20 (event injection).
_CR0_PE: Final = 1 << 0
_CR0_NW: Final = 1 << 29
_CR0_CD: Final = 1 << 30
_CR0_PG: Final = 1 << 31
_CR4_PAE: Final = 1 << 5
_EFER_LME: Final = 1 << 8
_EFER_LMA: Final = 1 << 10
_EFER_SVME: Final = 1 << 12
_RFLAGS_VM: Final = 1 << 17
_LOW_32: Final = 0xFFFF_FFFF
_DESCRIPTOR_L: Final = 1 << 21

_INTERCEPT_NMI: Final = 1 << 1
_NP: Final = int(MiscCtl.NP)
_V_NMI_ENABLE: Final = int(IntCtl.V_NMI_ENABLE)
_RUN_PENDING: Final = int(StateFlags.RUN_PENDING)
_GIF_SET: Final = int(StateFlags.GIF_SET)

# arch/x86/kvm/svm/svm.h: MSRPM_SIZE, IOPM_SIZE.
_MSRPM_SIZE: Final = 2 * PAGE_SIZE
_IOPM_SIZE: Final = 3 * PAGE_SIZE

_EVENT_VALID: Final = 1 << 31
_EVENT_TYPES: Final = (0, 2, 3, 4)
_EVENT_EXCEPTION: Final = 3
_CP_VECTOR, _VC_VECTOR = 21, 29

_NESTED_C: Final = "arch/x86/kvm/svm/nested.c:"
_SET_STATE: Final = f"{_NESTED_C}svm_set_nested_state"
_CONTROLS: Final = f"{_NESTED_C}nested_vmcb_check_controls"
_SAVE: Final = f"{_NESTED_C}nested_vmcb_check_save"
_VALID_SREGS: Final = "arch/x86/kvm/x86.c (7.1: regs.c):kvm_is_valid_sregs"
_IOCTL: Final = "arch/x86/kvm/x86.c:kvm_arch_vcpu_ioctl"
_MACHINE_C: Final = "target/i386/machine.c:"

# The releases of QEMU that introduced subsections of `cpu` which a vCPU in L2 may have.
SUBSECTIONS_SINCE: Final = {
    "cpu/kvm_nested_state/svm": Releases("5.0- 5.1+"),
    "cpu/amd_tsc_scale_msr": Releases("6.1- 6.2+"),
    "cpu/pdptrs": Releases("6.2- 7.0+"),
    "cpu/error_code": Releases("10.0- 10.2+"),
    "cpu/cet": Releases("10.2- 11.1+"),
}

_LOAD, _SREGS, _NESTED = Stage.LOAD, Stage.SREGS, Stage.NESTED_STATE

# Since the vCPU's save area was split into vmcb01 and vmcb02.
_SPLIT: Final = Releases("5.11- 5.13+ 5.10.262-")
_2026: Final = Releases("6.19- 7.1+ 6.1.170- 6.1.176+ 6.12.8- 6.12.94+ 5.10.262-")
_SREGS_CR0: Final = Releases("5.15- 6.12+ 5.10.262- 6.1.170+")
_SREGS_EFER: Final = Releases("6.12- 7.2+ 5.10.262- 6.1.192- 6.12.111- 6.12.113+")
_CHECKS_NPT_ITSELF: Final = Releases("5.8+ 6.19+ 7.1-")


def _long_mode(a: Attempt) -> bool:
    return bool(a.cpu.efer & _EFER_LME and a.cpu.cr0 & _CR0_PG)


def _cs_is_long(a: Attempt) -> bool:
    # QEMU puts segments of its own for virtual 8086 mode.
    return bool(a.cpu.cs_flags & _DESCRIPTOR_L and not a.cpu.rflags & _RFLAGS_VM)


def _pae(a: Attempt) -> bool:
    return bool(a.cpu.cr0 & _CR0_PG and a.cpu.cr4 & _CR4_PAE and not a.cpu.efer & _EFER_LMA)


def _unknown_subsection(a: Attempt) -> Ternary:
    return any_of(False, *(negated(a.qemu_has(since)) for name, since in SUBSECTIONS_SINCE.items()
                           if name in a.subsections))  # fmt: skip


def _nested_cr3(a: Attempt) -> Ternary:
    if not a.control.misc_ctl & _NP or (illegal := a.illegal_address(a.control.nested_cr3)) is False:
        return False
    # Since 7.1 the bit is cleared before where the guest lacks the feature.
    return all_of(illegal, any_of(a.kernel_has(_CHECKS_NPT_ITSELF), a.has("NPT")))


def _bad_exception(a: Attempt) -> Ternary:
    event = a.control.event_inj
    if not event & _EVENT_VALID or event >> 8 & 7 != _EVENT_EXCEPTION:
        return False
    vector = event & 0xFF
    if vector == _CP_VECTOR:
        return negated(a.has("SHSTK"))
    if vector == _VC_VECTOR:
        return negated(a.has("SEV_ES"))
    return vector not in EXCEPTIONS


# fmt: off
_AT_LOAD: Final = (
    Rule("native", _LOAD, "nested_state",
         lambda a: cpu.NESTED_STATE_SVM2.name in a.subsections,
         "Native svm2 nested state: no stock QEMU knows its subsection, and loading ends with an error.",
         "migration/vmstate.c:vmstate_subsection_load"),
    Rule("vmx-child", _LOAD, "nested_state",
         lambda a: cpu.NESTED_STATE_VMX.name in a.subsections,
         "The nested state is Intel's: on an AMD host QEMU's buffer is too small for it.",
         f"{_MACHINE_C}vmstate_vmx_nested_state"),
    Rule("no-nesting", _LOAD, "nested_state",
         lambda a: False if a.sent.nested is None else negated(a.has_buffer),
         "The stream has cpu/nested_state, but {a.why_no_buffer}: its QEMU ends with a failed assertion.",
         "target/i386/kvm/kvm.c:kvm_arch_init_vcpu; migration/vmstate.c:vmstate_load_state"),
    Rule("subsection-unknown", _LOAD, "cpu",
         _unknown_subsection,
         "The section has a subsection that {a.whose_qemu} does not know, and loading ends with an error.",
         "migration/vmstate.c:vmstate_subsection_load"),
    Rule("size-header", _LOAD, "nested_state.size",
         lambda a: a.sent.nested is not None and a.state.size < SIZE_L1,
         "Nested state size {v.state.size:#x} is less than the header's 0x80.",
         f"{_MACHINE_C}nested_state_post_load"),
    Rule("size-capability", _LOAD, "nested_state.size",
         lambda a: a.sent.nested is not None and a.state.size > SIZE_L2,
         "Nested state size {v.state.size:#x} is more than an AMD host's 0x1080.",
         f"{_MACHINE_C}nested_state_post_load"),
    Rule("format-unknown", _LOAD, "nested_state.format",
         lambda a: a.state.format not in (FORMAT_VMX, FORMAT_SVM),
         "Nested state has the unknown format {v.state.format:#x}.",
         f"{_MACHINE_C}nested_state_post_load"),
    Rule("guest-mode-inconsistent", _LOAD, "cpu.hflags",
         lambda a: a.sent.hf_guest and (a.sent.nested is None or not a.sent.nested.guest_mode),
         "hflags {v.cpu.hflags:#x} has bit 21 (L2 active), but the stream has no KVM nested state that says so.",
         f"{_MACHINE_C}cpu_post_load"),
)

_AT_SREGS: Final = (
    Rule("pdptrs-without-pae", _SREGS, "cpu",
         lambda a: "cpu/pdptrs" in a.subsections and not _pae(a),
         "The section has cpu/pdptrs, but its registers are not in PAE paging (CR0 {v.cpu.cr0:#x}, "
         "CR4 {v.cpu.cr4:#x}, EFER {v.cpu.efer:#x}).",
         "arch/x86/kvm/x86.c:__set_sregs2", Releases("5.13- 5.14+ 5.10.262-")),
    Rule("sregs-cr4-pae", _SREGS, "cpu.cr4",
         lambda a: _long_mode(a) and not a.cpu.cr4 & _CR4_PAE,
         "{a.whose} CR4 {v.cpu.cr4:#x} has PAE (0x20) clear in long mode (EFER {v.cpu.efer:#x}).",
         _VALID_SREGS),
    Rule("sregs-efer-lma", _SREGS, "cpu.efer",
         lambda a: _long_mode(a) and not a.cpu.efer & _EFER_LMA,
         "{a.whose} EFER {v.cpu.efer:#x} has LMA (0x400) clear with LME (0x100) and paging on.",
         _VALID_SREGS),
    Rule("sregs-cr3-long-mode", _SREGS, "cpu.cr3",
         lambda a: a.illegal_cr3(a.cpu.cr3) if _long_mode(a) else False,
         "{a.whose} CR3 {v.cpu.cr3:#x} is beyond the guest's physical addresses.",
         _VALID_SREGS),
    Rule("sregs-efer-lma-without-lme", _SREGS, "cpu.efer",
         lambda a: not _long_mode(a) and bool(a.cpu.efer & _EFER_LMA),
         "{a.whose} EFER {v.cpu.efer:#x} has LMA (0x400), but LME (0x100) or paging (CR0 {v.cpu.cr0:#x}) is off.",
         _VALID_SREGS),
    Rule("sregs-cs-long", _SREGS, "cpu.cs_flags",
         lambda a: not _long_mode(a) and _cs_is_long(a),
         "{a.whose} CS is a 64-bit code segment (flags {v.cpu.cs_flags:#x}) outside long mode.",
         _VALID_SREGS),
    Rule("sregs-cr4", _SREGS, "cpu.cr4",
         lambda a: a.l2_cr4.broken(a),
         "{a.whose} CR4 {v.cpu.cr4:#x} has bits {a.l2_cr4.shown:#x} that the destination does not give the guest.",
         "arch/x86/kvm/x86.c:kvm_is_valid_cr4"),
    Rule("sregs-cr0-high", _SREGS, "cpu.cr0",
         lambda a: a.cpu.cr0 > _LOW_32,
         "{a.whose} CR0 {v.cpu.cr0:#x} has bits above 31.",
         "arch/x86/kvm/x86.c:kvm_is_valid_cr0", _SREGS_CR0),
    Rule("sregs-cr0-nw", _SREGS, "cpu.cr0",
         lambda a: bool(a.cpu.cr0 & _CR0_NW and not a.cpu.cr0 & _CR0_CD),
         "{a.whose} CR0 {v.cpu.cr0:#x} has NW (0x20000000) without CD (0x40000000).",
         "arch/x86/kvm/x86.c:kvm_is_valid_cr0", _SREGS_CR0),
    Rule("sregs-cr0-pg", _SREGS, "cpu.cr0",
         lambda a: bool(a.cpu.cr0 & _CR0_PG and not a.cpu.cr0 & _CR0_PE),
         "{a.whose} CR0 {v.cpu.cr0:#x} has PG (0x80000000) without PE (0x1).",
         "arch/x86/kvm/x86.c:kvm_is_valid_cr0", _SREGS_CR0),
    Rule("sregs-efer", _SREGS, "cpu.efer",
         lambda a: a.l2_efer.broken(a),
         "{a.whose} EFER {v.cpu.efer:#x} has bits {a.l2_efer.shown:#x} that the destination does not give the guest.",
         _VALID_SREGS, _SREGS_EFER),
)

_AT_NESTED_STATE: Final = (
    Rule("run-pending-without-guest-mode", _NESTED, "nested_state.flags",
         lambda a: bool(a.state.flags & _RUN_PENDING) and not a.state.guest_mode,
         "Nested state flags {v.state.flags:#x}, as QEMU would put them, have RUN_PENDING (0x2) without "
         "GUEST_MODE (0x1).",
         _IOCTL),
    Rule("format-vmx", _NESTED, "nested_state.format",
         lambda a: a.state.format != FORMAT_SVM,
         "Nested state has format {v.state.format:#x}; on an AMD host it has to be 0x1.",
         _SET_STATE),
    Rule("flags", _NESTED, "nested_state.flags",
         lambda a: bool(a.state.flags & ~SVM_FLAGS),
         "Nested state flags {v.state.flags:#x} have bits that SVM does not allow (allowed: 0x103).",
         _SET_STATE),
    Rule("l2-efer-svme", _NESTED, "cpu.efer",
         lambda a: not a.cpu.efer & _EFER_SVME and bool(a.state.flags & ~_GIF_SET),
         "{a.whose} EFER {v.cpu.efer:#x} has SVME (0x1000) clear.",
         _SET_STATE),
    Rule("gif-without-svme", _NESTED, "cpu.hflags2",
         lambda a: not a.cpu.efer & _EFER_SVME and not a.state.flags,
         "EFER {v.cpu.efer:#x} has SVME (0x1000) clear and GIF is 0 (hflags2 {v.cpu.hflags2:#x}).",
         _SET_STATE, Releases("5.8+ 6.19+ 7.1-")),
)

# QEMU does not even ask such a kernel.
_NESTED_OFF: Final = (
    Rule("nested-off", _NESTED, "nested_state",
         lambda a: negated(a.nests),
         "The destination's KVM has nesting off.",
         _IOCTL, Releases("7.1- 7.2+")),
)

# Only with L2 active does KVM look further.
_IN_L2: Final = (
    Rule("vmcb-pa", _NESTED, "nested_state.vmcb_pa",
         lambda a: True if a.state.vmcb_pa % PAGE_SIZE else a.illegal_address(a.state.vmcb_pa),
         "vmcb_pa {v.state.vmcb_pa:#x} is not the address of a page that the guest can have.",
         _SET_STATE),
    Rule("size-page", _NESTED, "nested_state.size",
         lambda a: a.state.size < SIZE_L2,
         "Nested state size {v.state.size:#x} leaves out the VMCB page; 0x1080 is needed while L2 is active.",
         _SET_STATE),
    from_findings("vmrun-intercept", _NESTED, _CONTROLS),
    from_findings("asid", _NESTED, _CONTROLS),
    Rule("npt", _NESTED, "control.misc_ctl",
         lambda a: negated(a.npt) if a.control.misc_ctl & _NP else False,
         "VMCB12's misc_ctl {v.control.misc_ctl:#x} has nested paging (0x1), which the destination has off.",
         _CONTROLS, _CHECKS_NPT_ITSELF),
    Rule("nested-cr3", _NESTED, "control.nested_cr3",
         _nested_cr3,
         "VMCB12's nested_cr3 {v.control.nested_cr3:#x} is beyond the guest's physical addresses.",
         _CONTROLS, _2026),
    Rule("msrpm", _NESTED, "control.msrpm_base_pa",
         lambda a: a.illegal_range(a.control.msrpm_base_pa & -PAGE_SIZE, _MSRPM_SIZE),
         "VMCB12's MSR permission map at {v.control.msrpm_base_pa:#x} is beyond the guest's physical addresses.",
         _CONTROLS, _SPLIT),
    Rule("iopm", _NESTED, "control.iopm_base_pa",
         lambda a: a.illegal_range(a.control.iopm_base_pa & -PAGE_SIZE, _IOPM_SIZE),
         "VMCB12's I/O permission map at {v.control.iopm_base_pa:#x} is beyond the guest's physical addresses.",
         _CONTROLS, _SPLIT),
    Rule("v-nmi", _NESTED, "control.int_ctl",
         lambda a: bool(a.control.int_ctl & _V_NMI_ENABLE) and not a.control.intercept_word3 & _INTERCEPT_NMI,
         "VMCB12's int_ctl {v.control.int_ctl:#x} has V_NMI_ENABLE (0x4000000), but NMI is not intercepted "
         "(word 3 is {v.control.intercept_word3:#x}).",
         _CONTROLS, Releases("6.1- 6.12+ 5.10.262- 6.1.192-")),
    Rule("event-inj-type", _NESTED, "control.event_inj",
         lambda a: bool(a.control.event_inj & _EVENT_VALID) and a.control.event_inj >> 8 & 7 not in _EVENT_TYPES,
         "VMCB12 injects an event of a type that is not defined (event_inj {v.control.event_inj:#x}).",
         f"{_NESTED_C}nested_svm_check_event_inj", Releases("6.19- 7.1+ 6.1.192- 6.12.118-")),
    Rule("event-inj-vector", _NESTED, "control.event_inj",
         _bad_exception,
         "VMCB12 injects an exception that the guest does not have (event_inj {v.control.event_inj:#x}).",
         f"{_NESTED_C}nested_svm_event_inj_valid_exept", Releases("6.19- 7.1+ 6.1.192- 6.12.118-")),
    from_findings("l2-cr0-nw", _NESTED, _SET_STATE),
    from_findings("l1-cr0-pg", _NESTED, _SET_STATE, _SPLIT),
    Rule("l1-cr0-pg", _NESTED, "l1.cr0",
         lambda a: not a.l1.cr0 & _CR0_PG,
         "L1's CR0 {v.l1.cr0:#x} has PG (0x80000000) clear.",
         _SET_STATE, Releases("5.8+ 5.11+ 5.13-")),
    from_findings("l1-rflags-vm", _NESTED, _SET_STATE, _SPLIT),
    from_findings("l1-efer-lma", _NESTED, _SET_STATE,
                  Releases("7.2- 7.3+ 7.2.12- 6.12.117- 6.12.118+ 6.1.192- 5.10.262-")),
    from_findings("l1-efer-svme", _NESTED, _SAVE, Releases("5.8- 5.13+ 5.10.223+")),
    from_findings("l1-cr0-nw", _NESTED, _SAVE, _SPLIT),
    from_findings("l1-cr0-high", _NESTED, _SAVE, _SPLIT),
    from_findings("l1-dr6-high", _NESTED, _SAVE, _SPLIT),
    from_findings("l1-dr7-high", _NESTED, _SAVE, _SPLIT),
    from_findings("l1-cr4-pae", _NESTED, _SAVE, _SPLIT),
    Rule("l1-cr3", _NESTED, "l1.cr3",
         lambda a: a.illegal_cr3(a.l1.cr3) if a.view.long_mode_l1 else False,
         "L1's CR3 {v.l1.cr3:#x} is beyond the guest's physical addresses.",
         _SAVE, _SPLIT),
    from_findings("l1-cs", _NESTED, _SAVE, _2026),
    Rule("l1-cr4", _NESTED, "l1.cr4",
         lambda a: a.l1_cr4.broken(a),
         "L1's CR4 {v.l1.cr4:#x} has bits {a.l1_cr4.shown:#x} that the destination does not give the guest.",
         _SAVE, _SPLIT),
    Rule("l1-efer", _NESTED, "l1.efer",
         lambda a: a.l1_efer.broken(a),
         "L1's EFER {v.l1.efer:#x} has bits {a.l1_efer.shown:#x} that the destination does not give the guest.",
         _SAVE, _SPLIT),
    Rule("l2-cr3", _NESTED, "cpu.cr3",
         lambda a: a.illegal_cr3(a.cpu.cr3),
         "L2's CR3 {v.cpu.cr3:#x} is beyond the guest's physical addresses; KVM finds out after it entered L2.",
         f"{_NESTED_C}nested_svm_load_cr3", Releases("5.13- 6.1+ 5.10.262-")),
)
# fmt: on


def applicable(attempt: Attempt) -> tuple[Met, ...]:
    """The checks that a migration meets, in order: QEMU's, then the kernel's; of those that are findings, the broken
    ones, and none that the destination's kernel is known not to make."""
    nests = attempt.has_buffer is not False
    return _applicable(nests, attempt.in_l2, broken(attempt.view), attempt.facts.kernel)


@functools.lru_cache(maxsize=64)
def _applicable(has_buffer: bool, in_l2: bool, found: tuple[str, ...], kernel: Version | None) -> tuple[Met, ...]:
    met = _AT_LOAD + _AT_SREGS + (_AT_NESTED_STATE + (_IN_L2 if in_l2 else ()) if has_buffer else ())
    return tuple(that_may_speak(met, found, kernel))


def met_by_kernel(attempt: Attempt) -> tuple[Rule, ...]:
    """The checks that KVM makes if it is asked, in order."""
    return _AT_SREGS + _NESTED_OFF + _AT_NESTED_STATE + (_IN_L2 if attempt.in_l2 else ())


CHECKS: Final = _AT_LOAD + _AT_SREGS + _NESTED_OFF + _AT_NESTED_STATE + _IN_L2
"""All of them, for listing."""
