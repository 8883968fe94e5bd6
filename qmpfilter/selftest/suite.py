# SPDX-License-Identifier: GPL-2.0-or-later
"""All cases on this host, or why there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
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


_NESTED: Final = Path("/sys/module/kvm_amd/parameters/nested")


def run_all(wanted: str = "") -> Iterator[Result]:
    """Run the cases that have this text in their name, one after the other.

    :raises HostError: this host has no nested SVM, and what to do about it
    """
    with Kvm() as kvm:
        leaves = {row.function: row for row in kvm.supported_cpuid() if row.index == 0}
        if _FEATURES not in leaves or not leaves[_FEATURES].ecx & _SVM:
            raise HostError(_why_no_svm())
        if not kvm.check_extension(Cap.NESTED_STATE) or not kvm.check_extension(Cap.SREGS2):
            raise HostError("this kernel cannot save nested state, or the registers beside it (Linux 5.14 can)")
        offered = leaves[_FEATURES_SVM].edx if _FEATURES_SVM in leaves else 0
        for case in cases(nested_paging=bool(offered & _NPT), vgif=bool(offered & _VGIF)):
            if wanted in case.name:
                yield run(kvm, case)


def _why_no_svm() -> str:
    try:
        nested = _NESTED.read_text().strip()
    except OSError:
        return "KVM offers no SVM to guests here: it takes an AMD CPU with SVM on, and kvm_amd loaded"
    if nested in ("0", "N"):
        return f"KVM offers no SVM to guests here: kvm_amd was loaded with nested={nested}; load it with nested=1"
    return f"KVM offers no SVM to guests here, although kvm_amd has nested={nested}"
