# SPDX-License-Identifier: GPL-2.0-or-later
"""From findings that forbid a conversion to the error that says so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from qmpfilter.errors import RefusedError
from qmpfilter.layout import Layout
from qmpfilter.svm.findings import Finding, Severity
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET
from qmpfilter.wire import cpu

__all__ = ["raise_refusals"]

# The prefix of a finding's field: its layout, and where that begins in what holds it.
_PLACES: Final[dict[str, tuple[Layout, int]]] = {
    "control": (CONTROL, 0),
    "l1": (SAVE, SAVE_OFFSET),
    "cpu": (cpu.BLOCK, 0),
    "nested_state": (cpu.NESTED_STATE.layout, 0),
    "vmcb12_save": (SAVE, 0),
}


def raise_refusals(findings: Iterable[Finding]) -> None:
    """:raises RefusedError: one of the findings at least is not a mere warning"""
    refusals = [finding for finding in findings if finding.severity is Severity.REFUSE]
    if not refusals:
        return
    field = refusals[0].field
    prefix, _, name = field.partition(".")
    layout, base = _PLACES[prefix]
    offset = base + (layout.offset(name) if name in layout.fields else 0)
    reasons = [(finding.code, finding.text) for finding in refusals]
    raise RefusedError(offset, f"nested state that can be converted ({field})", reasons)
