# SPDX-License-Identifier: GPL-2.0-or-later
"""What is different on a destination that accepted a state: dropped, cleared, or not restored.

Sources: as for :mod:`qmpfilter.verdict.checks`; Linux 7.3 arch/x86/kvm/svm/nested.c
(__nested_copy_vmcb_control_to_cache, nested_vmcb02_prepare_control, svm_copy_vmrun_state).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

from qmpfilter.svm.findings import broken
from qmpfilter.svm.legacy import FORMAT_SVM
from qmpfilter.svm.vmcb import IntCtl, IntState, MiscCtl
from qmpfilter.verdict.attempt import Attempt
from qmpfilter.verdict.rule import EVERY, Met, Rule, Stage, from_findings, that_may_speak
from qmpfilter.verdict.ternary import Ternary, all_of, negated
from qmpfilter.verdict.version import Releases, Version

__all__ = ["KEEPS_L1_LBR", "LOSSES", "LOSS_CODES", "losses"]

_RUN: Final = Stage.RUN
_NESTED_C: Final = "arch/x86/kvm/svm/nested.c:"
_SET_STATE: Final = f"{_NESTED_C}svm_set_nested_state"
_TO_CACHE: Final = f"{_NESTED_C}__nested_copy_vmcb_control_to_cache"
_PREPARE: Final = f"{_NESTED_C}nested_vmcb02_prepare_control"
_COPY: Final = f"{_NESTED_C}svm_copy_vmrun_state"

_NP, _GMET = int(MiscCtl.NP), int(MiscCtl.GMET)
_V_GIF_ENABLE, _V_NMI_ENABLE = int(IntCtl.V_GIF_ENABLE), int(IntCtl.V_NMI_ENABLE)
_SHADOW: Final = int(IntState.INTERRUPT_SHADOW)
_EVENT_VALID: Final = 1 << 31
_EVENT_SOFT: Final = 4
# SVM_EVTINJ_RESERVED_BITS, TLB_CONTROL_MASK, SVM_INT_VECTOR_MASK (arch/x86/include/asm/svm.h).
_EVENT_RESERVED: Final = 0x7FFF_F000
_TLB_CONTROL: Final = 0x7
_INT_VECTOR: Final = 0xFF

# What 7.1 clears: INTERCEPT_* of svm.h, word and bit, and the feature that the guest needs for it.
_SANITISED: Final = (
    ("XSETBV", "intercept_word4", 13, "XSAVE"),
    ("RDTSCP", "intercept_word4", 7, "RDTSCP"),
    ("SKINIT", "intercept_word4", 6, "SKINIT"),
    ("RDPRU", "intercept_word4", 14, "RDPRU"),
    ("INVPCID", "intercept_word5", 2, "INVPCID"),
)
# 5.x only ever copied what it knew; 6.12.118 and 6.1.192 do not clear anything.
_SANITISES: Final = Releases("6.19- 7.1+ 5.10.262- 6.1.192- 6.12.118-")
KEEPS_L1_LBR: Final = Releases("6.19- 7.1+ 5.10.262- 6.1.192- 6.12.113- 6.12.115+")
_KEEPS_L1_CET: Final = Releases("6.17- 6.18+ 5.10.262- 6.1.192- 6.12.118-")
_KNOWS_VNMI: Final = Releases("6.1- 6.12+ 5.10.262- 6.1.192-")


def _intercept(name: str, word: str, bit: int, feature: str) -> Rule:
    return Rule(
        f"intercept-{name.lower()}", _RUN, f"control.{word}",
        lambda a: negated(a.has(feature)) if getattr(a.control, word) >> bit & 1 else False,
        f"VMCB12's intercept of {name} is cleared, because the guest's CPUID lacks it.",
        _TO_CACHE, _SANITISES,
    )  # fmt: skip


def _lost_feature(
    has_bit: Callable[[Attempt], bool], feature: str, known: Releases = EVERY
) -> Callable[[Attempt], Ternary]:
    def lost(a: Attempt) -> Ternary:
        if not has_bit(a):
            return False
        return negated(all_of(a.has(feature), True if known is EVERY else a.kernel_has(known)))

    return lost


# fmt: off
_EVERY_VCPU: Final = (
    Rule("l2-forgotten", _RUN, "cpu.hflags",
         lambda a: a.sent.nested is not None and a.sent.nested.guest_mode and not a.sent.hf_guest,
         "Bit 21 of hflags {v.cpu.hflags:#x} is clear, so QEMU tells KVM that L2 is not active: L2's registers "
         "would go on as L1's.",
         "target/i386/kvm/kvm.c:kvm_put_nested_state"),
    Rule("gif-from-hflags2", _RUN, "cpu.hflags2",
         lambda a: a.sent.nested is not None and a.sent.nested.format == FORMAT_SVM
                   and a.sent.nested.gif != a.sent.hf2_gif,
         "L1's GIF is taken from hflags2 {v.cpu.hflags2:#x}, and the nested state's flags "
         "{a.sent.state.flags:#x} say otherwise.",
         "target/i386/kvm/kvm.c:kvm_put_nested_state"),
    # Kernels pass the annex over; whoever converts this state back will not.
    Rule("svm2-record", _RUN, "svm2",
         lambda a: bool(a.damaged_record),
         "The svm2 record in the page's annex is damaged ({a.damaged_record}); kernels pass it over.",
         "qmpfilter/svm/annex.py:decode"),
)

_IN_L2: Final = (
    from_findings("smm-guest-mode", _RUN, "arch/x86/kvm/x86.c:kvm_vcpu_ioctl_x86_set_vcpu_events"),
    Rule("run-pending-dropped", _RUN, "nested_state.flags",
         lambda a: a.state.run_pending,
         "RUN_PENDING is dropped, and with it an event that L1 injects (event_inj {v.control.event_inj:#x}).",
         _SET_STATE, Releases("5.10+ 5.11-")),
    Rule("gif-not-restored", _RUN, "nested_state.flags",
         lambda a: not a.state.gif,
         "L1's GIF, which is 0 (flags {v.state.flags:#x}), is not restored and becomes 1.",
         _SET_STATE, Releases("5.10+ 5.13-")),
    Rule("msrpm-not-merged", _RUN, "control.msrpm_base_pa",
         lambda a: True,
         "L1's MSR permission map is not merged before the next VMRUN: L2 reaches MSRs that L1 intercepts.",
         f"{_NESTED_C}svm_get_nested_state_pages", Releases("5.8+ 5.10-")),
    Rule("next-rip-dropped", _RUN, "control.next_rip",
         lambda a: bool(a.control.next_rip and a.control.event_inj & _EVENT_VALID
                        and a.control.event_inj >> 8 & 7 == _EVENT_SOFT),
         "next_rip {v.control.next_rip:#x}, where a software interrupt returns to, is dropped.",
         _TO_CACHE, Releases("5.15+ 6.1-")),
    Rule("npt-cleared", _RUN, "control.misc_ctl",
         lambda a: negated(a.has("NPT")) if a.control.misc_ctl & _NP else False,
         "VMCB12's nested paging (misc_ctl {v.control.misc_ctl:#x}) is turned off, because the guest's CPUID "
         "lacks NPT: L2 would run on other memory.",
         _TO_CACHE, _SANITISES),
    Rule("gmet-ignored", _RUN, "control.misc_ctl",
         lambda a: bool(a.control.misc_ctl & _GMET),
         "VMCB12's GMET (misc_ctl {v.control.misc_ctl:#x}) has no effect: L2 could execute what L1 forbids.",
         _PREPARE, Releases("7.1+ 7.2-")),
    Rule("gmet-cleared", _RUN, "control.misc_ctl",
         lambda a: negated(a.has("GMET")) if a.control.misc_ctl & _GMET else False,
         "VMCB12's GMET (misc_ctl {v.control.misc_ctl:#x}) is turned off: L2 could execute what L1 forbids.",
         _TO_CACHE, Releases("7.1- 7.2+")),
    *(_intercept(*row) for row in _SANITISED),
    Rule("tlb-ctl", _RUN, "control.tlb_ctl",
         lambda a: bool(a.control.tlb_ctl & ~_TLB_CONTROL),
         "Reserved bits of VMCB12's tlb_ctl {v.control.tlb_ctl:#x} are cleared.",
         _TO_CACHE, _SANITISES),
    Rule("int-vector", _RUN, "control.int_vector",
         lambda a: bool(a.control.int_vector & ~_INT_VECTOR),
         "Reserved bits of VMCB12's int_vector {v.control.int_vector:#x} are cleared.",
         _TO_CACHE, _SANITISES),
    Rule("int-state", _RUN, "control.int_state",
         lambda a: bool(a.control.int_state & ~_SHADOW),
         "All of VMCB12's int_state {v.control.int_state:#x} but the interrupt shadow is cleared.",
         _TO_CACHE, _SANITISES),
    Rule("event-inj-reserved", _RUN, "control.event_inj",
         lambda a: bool(a.control.event_inj & _EVENT_RESERVED),
         "Reserved bits of VMCB12's event_inj {v.control.event_inj:#x} are cleared.",
         _TO_CACHE, _SANITISES),
    Rule("v-gif", _RUN, "control.int_ctl",
         _lost_feature(lambda a: bool(a.control.int_ctl & _V_GIF_ENABLE), "VGIF"),
         "VMCB12's virtual GIF (int_ctl {v.control.int_ctl:#x}) has no effect: the guest's CPUID lacks VGIF.",
         _PREPARE),
    Rule("v-nmi-ignored", _RUN, "control.int_ctl",
         _lost_feature(lambda a: bool(a.control.int_ctl & _V_NMI_ENABLE), "VNMI", _KNOWS_VNMI),
         "VMCB12's virtual NMI (int_ctl {v.control.int_ctl:#x}) has no effect.",
         _PREPARE),
    from_findings("sev", _RUN, _PREPARE),
    from_findings("dr7-guess", _RUN, "arch/x86/kvm/x86.c:kvm_vcpu_ioctl_x86_get_debugregs"),
    from_findings("lbr", _RUN, _COPY),
    Rule("l1-lbr", _RUN, "l1.dbgctl",
         _lost_feature(lambda a: any((a.l1.dbgctl, a.l1.br_from, a.l1.br_to, a.l1.last_excp_from,
                                      a.l1.last_excp_to)), "LBRV", KEEPS_L1_LBR),
         "L1's DBGCTL {v.l1.dbgctl:#x} and branch records are not restored.",
         _COPY),
    Rule("l1-cet", _RUN, "l1.s_cet",
         _lost_feature(lambda a: any((a.l1.s_cet, a.l1.ssp, a.l1.isst_addr)), "SHSTK", _KEEPS_L1_CET),
         "L1's shadow stack (S_CET {v.l1.s_cet:#x}, SSP {v.l1.ssp:#x}) is not restored.",
         _COPY),
    from_findings("hyperv", _RUN, _TO_CACHE),
    from_findings("cet-missing", _RUN, "target/i386/machine.c:vmstate_cet"),
    from_findings("error-code-missing", _RUN, "target/i386/machine.c:vmstate_error_code"),
)
# fmt: on

LOSSES: Final = _EVERY_VCPU + _IN_L2
"""All of them, for listing."""

LOSS_CODES: Final = frozenset(rule.code for rule in LOSSES)
"""What a policy can accept."""


def losses(attempt: Attempt) -> tuple[Met, ...]:
    """The rules that have anything to say about an attempt."""
    return _losses(attempt.in_l2, broken(attempt.view), attempt.facts.kernel)


@functools.lru_cache(maxsize=64)
def _losses(in_l2: bool, found: tuple[str, ...], kernel: Version | None) -> tuple[Met, ...]:
    return tuple(that_may_speak(LOSSES if in_l2 else _EVERY_VCPU, found, kernel))
