# SPDX-License-Identifier: GPL-2.0-or-later
"""What kernels and QEMUs do with SVM nested state beside refusing it, release by release. Pure.

What a verdict knows of them too comes from there. The rest is of the side that gives the state, and of what runs
wrong after a restore without any field being at fault.

Sources: Linux arch/x86/kvm/svm/nested.c and svm.c, mainline and the stable levels that the releases name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qmpfilter.verdict.checks import SUBSECTIONS_SINCE
from qmpfilter.verdict.judge import HEEDS_REFUSAL
from qmpfilter.verdict.losses import KEEPS_L1_LBR, LOSSES
from qmpfilter.verdict.ternary import Ternary, negated
from qmpfilter.verdict.version import Releases, Version

__all__ = ["KERNEL_BEHAVIOURS", "QEMU_BEHAVIOURS", "Behaviour"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Something that good releases do.

    :param title: what is checked for
    :param shown_by: whether a release does it
    :param hint: what the others do, and the way out
    :param fatal: whether a host without it is unfit
    """

    title: str
    shown_by: Callable[[Version], Ternary]
    hint: str
    fatal: bool = False


def _without_loss(code: str) -> Callable[[Version], Ternary]:
    """Shown by kernels that a verdict's rule says nothing against."""
    (rule,) = (rule for rule in LOSSES if rule.code == code)
    return lambda version: negated(rule.kernels.have_it(version))


KERNEL_BEHAVIOURS: Final = (
    Behaviour(
        "merging L1's MSR bitmap after a restore",
        _without_loss("msrpm-not-merged"),
        "a restored L2 runs without L1's MSR intercepts until its next VMRUN; upgrade to Linux 5.10 or newer",
    ),
    Behaviour(
        "keeping a pending VMRUN over a restore",
        _without_loss("run-pending-dropped"),
        "it drops RUN_PENDING, and what L1 injects with it may be lost; upgrade to Linux 5.11 or newer",
    ),
    Behaviour(
        "giving VMLOAD state with L1's save area",  # svm_get_nested_state copies vmcb01 (commit 4995a3685f1b)
        Releases("5.11- 5.13+").have_it,
        "FS, GS, TR, LDTR and the syscall MSRs stand in the vCPU's registers alone, so nothing can confirm them; "
        "upgrade to Linux 5.13 or newer",
    ),
    Behaviour(
        "giving the current interrupt shadow",  # nested_sync_control_from_vmcb02: int_state (CVE-2026-45987)
        Releases("6.19- 7.1+ 5.10.223- 5.10.262+ 6.1.170- 6.1.190+ 6.12.8- 6.12.94+ 6.17.8- 6.18.5- 6.19.6-").have_it,
        "int_state is that of L2's last VMRUN; upgrade to Linux 5.10.262, 6.1.190, 6.12.94, 7.1 or newer",
    ),
    Behaviour(
        "giving the current next_rip",  # kept by svm_vcpu_run, given by nested_copy_vmcb_cache_to_control
        Releases("6.19- 7.2+ 5.10.262- 6.1.190- 6.1.192+ 6.12.107- 6.12.117+ 6.17.8- 6.18.5- 6.19.6-").have_it,
        "a soft interrupt that is injected again after a move may return to a wrong address; "
        "upgrade to Linux 6.1.192, 6.12.117, 7.2 or newer",
    ),
    Behaviour(
        "marking VMCB02 dirty after a restore",  # svm_set_nested_state; until 5.10 nested_prepare_vmcb_control
        Releases("5.10+ 6.1- 6.19- 7.1+ 6.1.170- 6.1.190+ 6.12.8- 6.12.94+ 6.17.8- 6.18.5- 6.19.6-").have_it,
        "the processor may run L2 with what it cached before; upgrade to Linux 6.1.190, 6.12.94, 7.1 or newer",
    ),
    Behaviour(
        "carrying L1's LBR registers",
        KEEPS_L1_LBR.have_it,
        "last branch records are lost if L1 virtualizes them for L2; upgrade to Linux 6.12.117, 7.1 or newer",
    ),
    Behaviour(
        "reloading the PDPTRs of an L2 in PAE mode",  # svm_get_nested_state_pages, nested NPT
        Releases("7.1- 7.2+ 5.10.262- 6.1.192- 6.12.118- 6.18.5- 6.19.6- 7.1.3-").have_it,
        "a 32-bit L2 with PAE under nested paging may come back with wrong page tables; "
        "upgrade to Linux 7.2 or newer",
    ),
)
"""In the order of the releases that brought it."""

QEMU_BEHAVIOURS: Final = (
    Behaviour(
        "carrying SVM nested state",
        SUBSECTIONS_SINCE["cpu/kvm_nested_state/svm"].have_it,
        "it leaves an active L2 behind; upgrade to QEMU 5.1 or newer",
        fatal=True,
    ),
    Behaviour(
        "heeding a kernel's refusal",
        HEEDS_REFUSAL.have_it,
        "up to 8.1 it reports success and lets a broken guest run when the kernel refuses nested state; "
        "upgrade to QEMU 8.2 or newer, or let no stream in that qmpfilter has not judged",
    ),
    Behaviour(
        "carrying an exception's error code",
        SUBSECTIONS_SINCE["cpu/error_code"].have_it,
        "the error code of an exception that is being injected is lost; "
        "upgrade to QEMU 10.2 or newer, with a machine type of 10.2",
    ),
)
"""In the order of the releases that brought it."""
