# SPDX-License-Identifier: GPL-2.0-or-later
"""All cases on this host, or why there are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qmpfilter.errors import HostError
from qmpfilter.kvm.device import Kvm
from qmpfilter.kvm.uapi import Cap
from qmpfilter.selftest.cases import cases
from qmpfilter.selftest.run import Result, run

__all__ = ["run_all"]

# APM volume 3 appendix E: 8000_0001 ECX, 8000_000A EDX.
_FEATURES, _FEATURES_SVM = 0x8000_0001, 0x8000_000A
_SVM: Final = 1 << 2
_NPT, _VGIF = 1 << 0, 1 << 16


def run_all(wanted: str = "") -> Iterator[Result]:
    """Run the cases that have this text in their name, one after the other.

    :raises HostError: this host has no nested SVM, and what to do about it
    """
    with Kvm() as kvm:
        leaves = {row.function: row for row in kvm.supported_cpuid() if row.index == 0}
        if _FEATURES not in leaves or not leaves[_FEATURES].ecx & _SVM:
            raise HostError(
                "KVM offers no SVM to guests here: it takes an AMD host with kvm_amd's parameter nested=1"
            )
        if not kvm.check_extension(Cap.NESTED_STATE):
            raise HostError("this kernel cannot save nested state (Linux 5.8 or newer can)")
        offered = leaves[_FEATURES_SVM].edx if _FEATURES_SVM in leaves else 0
        for case in cases(nested_paging=bool(offered & _NPT), vgif=bool(offered & _VGIF)):
            if wanted in case.name:
                yield run(kvm, case)
