# SPDX-License-Identifier: GPL-2.0-or-later
"""What carries one vCPU's SVM nested state: the legacy page, the annex in it, or native svm2.

Source: this project's format, sections 3 and 4.
"""

from __future__ import annotations

from enum import StrEnum

from qmpfilter.svm import annex, native
from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L2, LegacyState
from qmpfilter.svm.section import CpuSection
from qmpfilter.svm.svm2 import Svm2State
from qmpfilter.value_class import value_class
from qmpfilter.wire import cpu

__all__ = ["Carried", "Carrier", "carried"]


class Carrier(StrEnum):
    """The forms in which an active L2's state travels, by the names that the command line has for them."""

    LEGACY = "legacy"
    """Format 1 as the kernel gave it; no svm2."""
    ANNEX = "annex"
    """Format 1 with svm2 in the end of its page: every kernel loads it."""
    NATIVE = "native"
    """Format 0x8002: only an endpoint that announced it loads it."""


@value_class
class Carried:
    """The nested state of a vCPU that is in L2.

    :param legacy: it in format 1; of native state, what its legacy half would be
    :param state: it in svm2, None for plain legacy state
    """

    carrier: Carrier
    legacy: LegacyState
    state: Svm2State | None


def carried(told: CpuSection) -> Carried | None:
    """The nested state of a vCPU's section; None unless it is SVM's and of an active L2, with its page.

    :raises RecordError: there is svm2, and it is damaged
    """
    header = told.subsections.get(cpu.NESTED_STATE.name)
    child = told.subsections.get(cpu.NESTED_STATE_SVM2.name)
    if header is not None and child is not None:
        state = native.decode_subsections(header, child)
        page = annex.strip(annex.encode(state))
        legacy = LegacyState(state.state_flags, FORMAT_SVM, SIZE_L2, state.vmcb_pa, page)
        return Carried(Carrier.NATIVE, legacy, state)
    nested = told.nested
    if nested is None or nested.page is None or nested.format != FORMAT_SVM or not nested.guest_mode:
        return None
    record = annex.decode(nested.page, nested.vmcb_pa, run_pending=nested.run_pending, gif=nested.gif)
    return Carried(Carrier.LEGACY if record is None else Carrier.ANNEX, nested, record)
