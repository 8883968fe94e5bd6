# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaces what a `cpu` section holds, and reads the result again before anyone gets it.

Only ``cpu/nested_state`` may change its length; everything that no edit names stays byte for byte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from qmpfilter.errors import BugError, StreamError, UnsupportedError
from qmpfilter.filter.carrier import Carried, carried
from qmpfilter.svm.legacy import LegacyState
from qmpfilter.svm.section import CpuSection
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DelimitedBy, DeviceSection
from qmpfilter.wire.footers import SectionHeader, footer, section_header
from qmpfilter.wire.framing import subsection_header
from qmpfilter.wire.sections import by_layout
from qmpfilter.wire.vmdesc import Splice, splice
from qmpfilter.wire.vmsd import Subsection, SubsectionAt, header_size

__all__ = ["Edit", "edited"]

_CHILDREN: Final = (cpu.NESTED_STATE_SVM, cpu.NESTED_STATE_SVM2)
_SIZES: Final = tuple([(child.name, child.layout.size)] for child in _CHILDREN)


@dataclass(frozen=True, slots=True, repr=False)
class Edit:
    """What a section is to hold.

    :param block: its fixed field block, 1817 bytes
    :param payloads: fields of ``cpu/nested_state``, of its child, and of other subsections that change, by full
        name
    :param child: the child that ``cpu/nested_state`` is to have
    :param means: what one reads in the result
    """

    block: bytes
    payloads: Mapping[str, bytes]
    child: Subsection
    means: Carried


def edited(section: DeviceSection, edit: Edit) -> DeviceSection:
    """The section with an edit made; its offset stays that of the original.

    :raises UnsupportedError: it cannot be told for certain what stands where in it
    :raises BugError: the result does not say what was intended
    """
    nested = _nested_state(section)
    same_length = _in_place(section, nested, edit)
    if same_length is not None:
        return same_length
    body, old_child = section.body, nested.children[0]
    header, child = edit.payloads[cpu.NESTED_STATE.name], edit.payloads[edit.child.name]
    child_header = subsection_header(edit.child.name, edit.child.version)
    splices = [
        Splice(body, body + cpu.BLOCK.size, edit.block),
        Splice(nested.payload, old_child.end, header + child_header + child),
    ]
    for at in _every(section.subsections):
        if at.name in edit.payloads and at is not nested and at is not old_child:
            splices.append(Splice(at.payload, at.payload + at.payload_size, edit.payloads[at.name]))
    raw = splice(section.raw, splices)
    grown = len(raw) - len(section.raw)
    start = nested.payload + len(header)
    new_child = SubsectionAt(
        edit.child.name, edit.child.version, start, start + header_size(edit.child.name), nested.end + grown
    )
    result = dataclasses.replace(
        section,
        raw=raw,
        body_end=section.body_end + grown,
        subsections=tuple(
            dataclasses.replace(at, end=at.end + grown, children=(new_child,))
            if at is nested
            else _moved(at, grown)
            if at.start > nested.start
            else at
            for at in section.subsections
        ),
    )
    _verify(section, result, edit)
    return result


def _in_place(section: DeviceSection, nested: SubsectionAt, edit: Edit) -> DeviceSection | None:
    """The section with an edit that changes no length, so that it is divided as it was; None for another edit.

    Nothing then has to be divided again: outside of the new stretches each byte is the original's, and only what
    they mean is read.

    :raises BugError: the result does not say what was intended
    """
    (child,) = nested.children
    original = section.raw
    if original[child.start : child.payload] != subsection_header(edit.child.name, edit.child.version):
        return None
    splices = [Splice(section.body, section.body + cpu.BLOCK.size, edit.block)]
    for at in _every(section.subsections):
        new = edit.payloads.get(at.name)
        if new is not None:
            splices.append(Splice(at.payload, at.payload + at.payload_size, new))
    if len(splices) != 1 + len(edit.payloads) or any(len(one.new) != one.end - one.start for one in splices):
        return None
    raw = splice(original, splices)
    done = 0
    for one in splices:
        if not raw.startswith(original[done : one.start], done) or not raw.startswith(one.new, one.start):
            raise BugError(f"{_where(section)} holds other bytes than intended")
        done = one.end
    if not raw.startswith(original[done:], done) or len(raw) != len(original):
        raise BugError(f"{_where(section)} holds other bytes than intended")
    _verify_meaning(section, raw[nested.payload : child.start], raw[child.payload : child.end], edit)
    return DeviceSection(
        section.offset,
        raw,
        section.section_id,
        section.idstr,
        section.instance_id,
        section.version_id,
        section.body,
        section.body_end,
        section.delimited_by,
        section.subsections,
    )


def _verify_meaning(section: DeviceSection, header: bytes, child: bytes, edit: Edit) -> None:
    payloads = {cpu.NESTED_STATE.name: header, edit.child.name: child}
    nested = LegacyState.from_subsections(header, child if edit.child is cpu.NESTED_STATE_SVM else None)
    try:
        means = carried(CpuSection(section.instance_id, edit.block, payloads, nested, vmx=False))
    except StreamError as error:
        raise BugError(f"{_where(section)} cannot be read: {error}") from error
    if means != edit.means:
        raise BugError(f"{_where(section)} means something else than intended")


def _where(section: DeviceSection) -> str:
    return f"vCPU {section.instance_id}: the edited section"


def _nested_state(section: DeviceSection) -> SubsectionAt:
    """``cpu/nested_state``, known to hold nothing but its fields and one child of SVM."""
    if section.delimited_by is DelimitedBy.FOOTER:
        names = ", ".join(at.name for at in section.subsections if at.name not in cpu.SUBSECTIONS)
        raise UnsupportedError(
            section.offset, "a `cpu` section of known layout where there is no vmdesc (postcopy)", names or "another"
        )
    nested = section.subsection(cpu.NESTED_STATE.name)
    if nested is None:
        raise BugError(f"an edit of a `cpu` section without {cpu.NESTED_STATE.name}")
    sizes = [(at.name, at.end - at.payload) for at in nested.children]
    if nested.payload_size != cpu.NESTED_STATE.layout.size or sizes not in _SIZES:
        raise UnsupportedError(
            section.offset + nested.start,
            f"{cpu.NESTED_STATE.name} with one child of SVM",
            ", ".join(f"{name} of {size} bytes" for name, size in sizes) or "no child",
        )
    return nested


def _every(subsections: Iterable[SubsectionAt]) -> Iterator[SubsectionAt]:
    for at in subsections:
        yield at
        yield from _every(at.children)


def _moved(at: SubsectionAt, by: int) -> SubsectionAt:
    children = tuple(_moved(child, by) for child in at.children)
    return SubsectionAt(at.name, at.version, at.start + by, at.payload + by, at.end + by, children)


def _verify(original: DeviceSection, result: DeviceSection, edit: Edit) -> None:
    """:raises BugError: the result, read like any input, is not what was intended"""
    where = _where(original)
    raw = result.raw
    if raw[: result.body] != original.raw[: original.body] or raw[result.body_end :] != footer(result.section_id):
        raise BugError(f"{where} has another header or footer")
    header = section_header(raw, 0)
    if not isinstance(header, SectionHeader):
        raise BugError(f"{where} has no header")
    try:
        found = by_layout(raw, 0, header, 0)
        # Where vmdesc divided the original, there are subsections of unknown layout; vmdesc is asked again.
        known = isinstance(found, tuple)
        if found != (result.body_end, result.subsections) and (known or original.delimited_by is DelimitedBy.LAYOUT):
            raise BugError(f"{where} is divided differently: {found}")
        for at in _every(result.subsections):
            if at.version and raw[at.start : at.payload] != subsection_header(at.name, at.version):
                raise BugError(f"{where} has no {at.name} at {at.start:#x}")
        told = CpuSection.of(result)
        means = carried(told)
    except StreamError as error:
        raise BugError(f"{where} cannot be read: {error}") from error
    kept = CpuSection.of(original).subsections
    wanted = {name: kept[name] for name in kept if name not in (child.name for child in _CHILDREN)}
    if told.block != edit.block or told.subsections != {**wanted, **edit.payloads}:
        raise BugError(f"{where} holds other bytes than intended")
    if means != edit.means:
        raise BugError(f"{where} means something else than intended")
