# SPDX-License-Identifier: GPL-2.0-or-later
"""Legacy nested state to svm2: VMCB12's save area is put together from where L2's registers stand.

What :func:`qmpfilter.svm.findings.examine` refuses is not converted. All else is, and for every field the
result says how exact it is. The way back is :mod:`qmpfilter.svm.downgrade`; from one carrier of svm2 to the
other nothing needs converting: decode the one, encode the other.

Sources: this project's format, sections 5 and 6; the tables are in :mod:`qmpfilter.svm.provenance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Final

from qmpfilter.errors import BugError
from qmpfilter.layout import Codec
from qmpfilter.svm.annex import ANNEX_OFFSET, MAGIC
from qmpfilter.svm.doubtful import Judged, Memory, control_doubts, dr7, g_pat, lbr
from qmpfilter.svm.findings import Finding, Severity, judge
from qmpfilter.svm.legacy import Era, LegacyState
from qmpfilter.svm.provenance import SECTION, SUBSECTIONS, Confidence, FieldFinding, moves
from qmpfilter.svm.refusal import raise_refusals
from qmpfilter.svm.svm2 import VALIDITY_BITS, L1Visible, Producer, Svm2Flags, Svm2State, Validity
from qmpfilter.svm.view import View
from qmpfilter.svm.vmcb import (
    CONTROL_SIZE,
    PAGE_SIZE,
    SAVE,
    SAVE_OFFSET,
    SAVE_SIZE,
    SEGMENTS,
    RegisterClass,
    registers,
)
from qmpfilter.value_class import value_class
from qmpfilter.wire import cpu

__all__ = ["PRODUCER_VERSION", "Upgrade", "to_svm2"]

PRODUCER_VERSION: Final = 1
"""Of this converter, in the states that it makes."""

_L1_END: Final = SAVE_OFFSET + SAVE_SIZE
_NO_TAIL: Final = bytes(PAGE_SIZE - _L1_END)
_EXACT, _RECOMPUTED = Confidence.EXACT, Confidence.RECOMPUTED


@value_class
class Upgrade:
    """What became of one vCPU's legacy state.

    :param state: the same as svm2
    :param fields: how exact each of its fields is, each once
    :param warnings: what is legal but lost or doubtful in the source
    """

    state: Svm2State
    fields: tuple[FieldFinding, ...]
    warnings: tuple[Finding, ...]


def to_svm2(
    legacy: LegacyState,
    block: bytes,
    subsections: Mapping[str, bytes],
    *,
    vmcb12: bytes | None = None,
    view: View | None = None,
) -> Upgrade:
    """Convert one vCPU's legacy state.

    :param legacy: of a vCPU that is in L2, format SVM
    :param block: the fixed field block of its `cpu` section, 1817 bytes
    :param subsections: payloads of the section's subsections, and of their children, by full name
    :param vmcb12: the 4096 bytes of guest memory at vmcb_pa, where they were read; they settle L2's DR7
        and PAT
    :param view: of these three, where it is at hand
    :raises RefusedError: the state is damaged, contradictory, or of a kind that kernels reject
    :raises BugError: the vCPU is not in L2 under SVM, or an argument has the wrong size
    """
    view = view or View(legacy, block, subsections)
    findings = judge(view)
    page = legacy.page
    if view.svm_guest and page is not None and not page.endswith(_NO_TAIL):
        findings.append(_tail(page))
    raise_refusals(findings)
    if not view.svm_guest or page is None:
        raise BugError("a vCPU that is not in L2 under SVM was to be converted")
    memory = None if vmcb12 is None else Memory.read(vmcb12)
    if memory is not None and (foreign := memory.foreign(view)) is not None:
        findings.append(foreign)
        memory = None

    save, judged = _vmcb12_save(view, subsections, memory)
    judged += control_doubts(view)
    l1, section = view.l1, view.cpu
    state = Svm2State(
        run_pending=legacy.run_pending,
        gif=legacy.gif,
        vmcb_pa=legacy.vmcb_pa,
        l1_visible=L1Visible(l1.cr0, l1.cr3, l1.cr4, l1.efer, section.pat),
        l1_save=page[SAVE_OFFSET:_L1_END],
        vmcb12_control=page[:CONTROL_SIZE],
        vmcb12_save=save,
        validity=Validity(_validity(judged, _VALID_BY_LAYOUT)),
        flags=Svm2Flags.CONVERTED,
        producer=Producer.QMPFILTER,
        producer_version=PRODUCER_VERSION,
    )
    return Upgrade(state, _ALWAYS + judged, tuple(findings))


def _tail(page: bytes) -> Finding:
    if page.startswith(MAGIC, ANNEX_OFFSET):
        text = f"The VMCB page has an svm2 record (at {ANNEX_OFFSET:#x}) already."
    else:
        at = _L1_END + next(at for at, byte in enumerate(page[_L1_END:]) if byte)
        text = f"The VMCB page has a byte at {at:#x}, where no kernel writes one; a record would hide or replace it."
    return Finding("page-tail", Severity.REFUSE, text, "nested_state.vmcb12")


# --- VMCB12's save area ------------------------------------------------------------------------

_SAVE: Final = Codec(SAVE)
_INDEX: Final[Mapping[str, int]] = {name: index for index, name in enumerate(_SAVE.names)}
_MOVES: Final = tuple(move for row in SECTION for move in moves(row))
_BLOCK: Final = Codec(cpu.BLOCK)
# For each field of the save area the section's, or the 0 behind all of its fields.
_FROM: Final = {move.save: _BLOCK.names.index(move.block) for move in _MOVES}
_GATHERED: Final = itemgetter(*(_FROM.get(name, len(_BLOCK.names)) for name in _SAVE.names))
_READ: Final = tuple((_INDEX[move.save], move.read) for move in _MOVES if move.read is not int)
_JUDGES: Final[Mapping[str, Callable[[View, Memory | None], Judged]]] = {"dr7": dr7, "g_pat": g_pat}
_JUDGED: Final = tuple((_INDEX[register], settle) for register, settle in _JUDGES.items())

_RAW: Final[Mapping[str, FieldFinding]] = {
    row.register: FieldFinding(f"vmcb12_save.{row.register}", _EXACT, "the raw copy in the page")
    for row in SECTION
    if row.live
}
_IN_SECTION: Final[Mapping[str, FieldFinding]] = {
    row.register: FieldFinding(f"vmcb12_save.{row.register}", row.confidence, row.why)
    for row in SECTION
    if row.register not in _JUDGES
}
_NOT_LIVE: Final = tuple(finding for register, finding in _IN_SECTION.items() if register not in _RAW)
_RAW_ATTRIBS: Final = tuple((register, _INDEX[f"{register}_attrib"], f"{register}_attrib") for register in _RAW)

# Subsections: index in the save area, layout and field, findings where present and where absent.
_APART: Final = tuple(
    (
        row,
        _INDEX[row.register],
        FieldFinding(f"vmcb12_save.{row.register}", _EXACT, f"from {row.subsection}"),
        FieldFinding(f"vmcb12_save.{row.register}", _RECOMPUTED, f"0: {row.absent}"),
    )
    for row in SUBSECTIONS
)


def _vmcb12_save(
    view: View, subsections: Mapping[str, bytes], memory: Memory | None
) -> tuple[bytes, tuple[FieldFinding, ...]]:
    """L2's save area; what no row mentions is 0. The findings leave out those in :data:`_ALWAYS`."""
    values = list(_GATHERED((*view.cpu, 0)))
    for index, read in _READ:
        values[index] = read(values[index])
    fields = [*_live(view, values)]
    for index, settle in _JUDGED:
        values[index], finding = settle(view, memory)
        fields.append(finding)
    for row, index, present, absent in _APART:
        payload = subsections.get(row.subsection)
        if payload is not None:
            values[index] = row.get(payload)
        fields.append(absent if payload is None else present)
    fields += lbr(view)
    return _SAVE.pack(*values), tuple(fields)


def _live(view: View, values: list[int]) -> Iterator[FieldFinding]:
    """Takes the segments of the VMLOAD class from the page where they are raw there.

    Only where they agree with the vCPU's registers, and so only the attributes: a kernel up to 5.11 that
    was itself restored gives back an old page, which looks like era VMCB01 and is stale. What stock QEMU
    loads, the registers, is then right.
    """
    in_page = view.era is Era.VMCB01
    for register, index, name in _RAW_ATTRIBS:
        if in_page and register not in view.live_differing:
            values[index] = getattr(view.l1, name)
            yield _RAW[register]
        else:
            yield _IN_SECTION[register]


# --- the rest ----------------------------------------------------------------------------------

_PAGE_AS_IS: Final = "the page, as the kernel gave it"
# What is the same for every state.
_ALWAYS: Final = (
    *(FieldFinding(name, _EXACT, "nested state's header") for name in ("run_pending", "gif", "vmcb_pa")),
    FieldFinding("l1_save", _EXACT, _PAGE_AS_IS),
    *(
        FieldFinding(f"l1_visible.{name}", _EXACT, "the page: KVM keeps L1's own values there, not those of its host")
        for name in ("cr0", "cr3", "cr4", "efer")
    ),
    FieldFinding("l1_visible.pat", _EXACT, "the vCPU's IA32_PAT"),
    FieldFinding("vmcb12_control", _EXACT, f"{_PAGE_AS_IS}, so without clean, AVIC and Hyper-V's words"),
    FieldFinding("vmcb12_save.vmpl", _EXACT, "0: SEV-SNP is not nested"),
    *_NOT_LIVE,
)

# An item is valid when all its fields are exact.
_ITEM: Final[Mapping[str, int]] = {
    field: int(item)
    for item, fields in (
        (Validity.DR7, ["vmcb12_save.dr7"]),
        (Validity.G_PAT, ["vmcb12_save.g_pat"]),
        (Validity.LBR, [f"vmcb12_save.{name}" for name in registers(RegisterClass.VMRUN_LBR)]),
        (Validity.CET, [f"vmcb12_save.{name}" for name in registers(RegisterClass.VMRUN_SHSTK)]),
        (Validity.NEXT_RIP, ["vmcb12_control.next_rip"]),
        (Validity.INT_STATE, ["vmcb12_control.int_state"]),
        (Validity.RAW_ATTRIBUTES, [f"vmcb12_save.{name}" for name in SEGMENTS]),
        (Validity.SPEC_CTRL, ["vmcb12_save.spec_ctrl"]),
    )
    for field in fields
}


def _validity(fields: tuple[FieldFinding, ...], validity: int) -> int:
    """`validity` without the items of which a field is not exact."""
    for finding in fields:
        if finding.confidence is not _EXACT:
            validity &= ~_ITEM.get(finding.field, 0)
    return validity


_VALID_BY_LAYOUT: Final = _validity(_ALWAYS, VALIDITY_BITS)
