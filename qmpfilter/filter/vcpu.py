# SPDX-License-Identifier: GPL-2.0-or-later
"""Decides what becomes of one vCPU's section: which conversion, if any, and what it says of each field.

Sources: this project's format, sections 6 and 7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Final

from qmpfilter.errors import BugError
from qmpfilter.filter.carrier import Carried, Carrier, carried
from qmpfilter.filter.edit import Edit
from qmpfilter.layout import Codec
from qmpfilter.svm import annex, native
from qmpfilter.svm.convert import to_svm2
from qmpfilter.svm.downgrade import Downgrade, to_legacy
from qmpfilter.svm.findings import Finding, Severity, examine, judge
from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L2, LegacyState
from qmpfilter.svm.provenance import FieldFinding
from qmpfilter.svm.refusal import raise_refusals
from qmpfilter.svm.section import CpuSection
from qmpfilter.svm.svm2 import Svm2Flags, Svm2State
from qmpfilter.value_class import value_class
from qmpfilter.wire import cpu

__all__ = ["Decision", "Outcome", "decide"]

_NESTED, _SVM, _SVM2 = cpu.NESTED_STATE, cpu.NESTED_STATE_SVM, cpu.NESTED_STATE_SVM2
_HEADER = Codec(_NESTED.layout)
_CHILD = Codec(_SVM.layout, _SVM.layout.fields)

# Codes of findings that say that there is an L2 of another kind.
_FOREIGN = ("vmx", "tcg-svm")

_NO_MEMORY: Final[Mapping[int, bytes]] = {}


class Outcome(StrEnum):
    """What becomes of a vCPU's section."""

    CONVERTED = "converted"
    ALREADY = "unchanged: it has that form already"
    NOT_IN_L2 = "unchanged: not in L2"
    OTHER = "unchanged: L2 is not one of KVM's SVM"
    """VMX, or TCG's own emulation."""


@value_class
class Decision:
    """What is to be done with one vCPU, and what is known of it.

    :param found: what carried its nested state; None where nothing is to be converted
    :param edit: None where the section passes as it is
    :param fields: how exact each field of the new state is; nothing where only the carrier changes
    :param findings: what is legal but lost or doubtful
    :param state: what the section then carries of svm2
    """

    outcome: Outcome
    found: Carrier | None
    edit: Edit | None = field(default=None, repr=False)
    fields: tuple[FieldFinding, ...] = ()
    findings: tuple[Finding, ...] = ()
    state: Svm2State | None = field(default=None, repr=False)


def decide(told: CpuSection, target: Carrier, memory: Mapping[int, bytes] = _NO_MEMORY) -> Decision:
    """What one vCPU needs so that its nested state is carried by `target`.

    :param memory: pages of guest memory, 4096 bytes each by their addresses; the one at vmcb_pa settles what
        legacy state leaves to be guessed, and where it does, the section is corrected too
    :raises RefusedError: the state is damaged, contradictory, or of a kind that kernels reject
    :raises RecordError: it has svm2 that is damaged
    """
    found = carried(told)
    if found is None:
        return _without_l2(told)
    if found.state is None:
        return _from_legacy(told, found, target, memory.get(found.legacy.vmcb_pa))
    return _from_svm2(told, found, found.state, target)


def _without_l2(told: CpuSection) -> Decision:
    findings = tuple(judge(told.view))
    raise_refusals(findings)
    foreign = any(finding.code in _FOREIGN for finding in findings)
    return Decision(Outcome.OTHER if foreign else Outcome.NOT_IN_L2, None, findings=findings)


def _from_legacy(told: CpuSection, found: Carried, target: Carrier, vmcb12: bytes | None) -> Decision:
    if target is Carrier.LEGACY:
        findings = tuple(judge(told.view))
        raise_refusals(findings)
        return _decision(found, None, (), findings)
    made = to_svm2(found.legacy, told.block, told.subsections, vmcb12=vmcb12, view=told.view)
    block, fields = told.block, made.fields
    if vmcb12 is not None:
        corrected = to_legacy(made.state, block, told.subsections)
        block, fields = corrected.block, fields + corrected.fields
    edit = _edit(target, made.state, block, {})
    if not _is_of(edit.means.legacy, found.legacy):
        raise BugError(f"vCPU {told.index}: svm2 is not of the legacy state that it was made from")
    return _decision(found, edit, fields, made.warnings)


def _is_of(made: LegacyState, legacy: LegacyState) -> bool:
    """Without its record the one is the other."""
    page = made.page
    return (
        page is not None
        and LegacyState(made.flags, made.format, made.size, made.vmcb_pa, annex.strip(page)) == legacy
    )


def _from_svm2(told: CpuSection, found: Carried, state: Svm2State, target: Carrier) -> Decision:
    """The section follows the state wherever QEMU may load it; for a native destination it does not matter.

    QEMU loads registers and debug registers after the nested state, from the section: where that differs from the
    record of the kernel that ran L2, as L2's DR7 does, it would undo what the record saved.
    """
    findings = examine(found.legacy, told.block, told.subsections)
    raise_refusals(findings)
    if target is Carrier.NATIVE:
        edit = None if found.carrier is target else _edit(target, state, told.block, {})
        return _decision(found, edit, (), tuple(findings))
    made = to_legacy(state, told.block, told.subsections)
    if target is Carrier.LEGACY:
        payloads = {**made.subsections, **_payloads(made.legacy)}
        means = Carried(Carrier.LEGACY, made.legacy, None)
        return _decision(found, Edit(made.block, payloads, _SVM, means), made.fields, made.warnings)
    if found.carrier is target:
        if not state.flags & Svm2Flags.AUTHORITATIVE:
            return _decision(found, None, (), made.warnings + _differing(made))
        changed = made.block != told.block or made.subsections
        payloads = {**made.subsections, **_payloads(found.legacy)}
        edit = Edit(made.block, payloads, _SVM, found) if changed else None
        return _decision(found, edit, made.fields if changed else (), made.warnings)
    loadable = dataclasses.replace(state, vmcb12_control=bytes(made.legacy.control), l1_save=bytes(made.legacy.save))
    return _decision(found, _edit(target, loadable, made.block, made.subsections), made.fields, made.warnings)


def _decision(
    found: Carried, edit: Edit | None, fields: tuple[FieldFinding, ...], findings: tuple[Finding, ...]
) -> Decision:
    outcome = Outcome.ALREADY if edit is None else Outcome.CONVERTED
    return Decision(outcome, found.carrier, edit, fields, findings, (found if edit is None else edit.means).state)


def _edit(target: Carrier, state: Svm2State, block: bytes, subsections: Mapping[str, bytes]) -> Edit:
    """The edit after which `target`, one of those that carry svm2, carries a state."""
    page = annex.encode(state)
    if target is Carrier.NATIVE:
        header, child = native.encode_subsections(state)
        legacy = _format_1(state, annex.strip(page))
        return Edit(
            block, {**subsections, _NESTED.name: header, _SVM2.name: child}, _SVM2, Carried(target, legacy, state)
        )
    legacy = _format_1(state, page)
    return Edit(block, {**subsections, **_payloads(legacy)}, _SVM, Carried(target, legacy, state))


def _format_1(state: Svm2State, page: bytes) -> LegacyState:
    return LegacyState(state.state_flags, FORMAT_SVM, SIZE_L2, state.vmcb_pa, page)


def _payloads(legacy: LegacyState) -> dict[str, bytes]:
    """The fields of ``cpu/nested_state`` and of its child ``svm``."""
    return {
        _NESTED.name: _HEADER.pack(legacy.flags, legacy.format, legacy.size),
        _SVM.name: _CHILD.pack(legacy.vmcb_pa, legacy.page),
    }


def _differing(made: Downgrade) -> tuple[Finding, ...]:
    """A stock destination loads the section, another one the record: both pass as they came, and it is said."""
    names = [finding.field for finding in made.fields if finding.field.startswith("cpu")]
    if not names:
        return ()
    text = f"The section and its svm2 record differ in {', '.join(names)}; both pass as they came."
    return (Finding("svm2-section", Severity.WARN, text, names[0]),)
