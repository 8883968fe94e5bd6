# SPDX-License-Identifier: GPL-2.0-or-later
"""Device sections (FULL) in a stretch of bytes: their headers, and where each one ends.

A FULL section carries no length. Its end is found, best first, by a layout known by heart, by the
sizes in vmdesc, or by its footer: ``7e · be32 id`` followed by something that can follow. A hostile
guest can put a forged footer into its own device state, hence that order.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from qmpfilter.errors import FramingError, LayoutError, LimitError
from qmpfilter.wire.devices import known
from qmpfilter.wire.events import DelimitedBy, DeviceSection
from qmpfilter.wire.footers import SectionHeader, footer, footer_candidates, next_part
from qmpfilter.wire.framing import BE32, FOOTER_SIZE, SectionType, subsection_header
from qmpfilter.wire.names import is_name
from qmpfilter.wire.vmdesc import Device, shape_of
from qmpfilter.wire.vmsd import Subsection, SubsectionAt, Vmsd

__all__ = [
    "Divisions",
    "Ending",
    "SeenSections",
    "by_footers",
    "by_layout",
    "by_vmdesc",
    "check_against_vmdesc",
    "section",
    "without_raw",
]

_MAX_SUBSECTIONS: Final = 256
# Sections that any stream may have: 4096 vCPUs with three each, and as many other devices.
_MAX_SECTIONS: Final = 16384


class SeenSections:
    """The device sections of one stream so far, none of which may come twice."""

    def __init__(self) -> None:
        self._names: set[tuple[str, int]] = set()
        self._ids: set[int] = set()

    def copy(self) -> SeenSections:
        """An independent copy."""
        copied = SeenSections()
        copied._names, copied._ids = self._names.copy(), self._ids.copy()
        return copied

    def add(self, found: DeviceSection) -> None:
        """Take in a section.

        QEMU registers each device once, with an id of its own. A guest that forges a section inside a
        device's state has to repeat one of the two: the id, because the forged section ends with the
        device's own footer, or the name of the device that it pretends to be.

        :raises FramingError: the stream has had a section of that name and instance, or of that section_id
        :raises LimitError: more sections than any machine has
        """
        key = (found.idstr, found.instance_id)
        if key in self._names:
            raise FramingError(found.offset, "each device section once", f"{found.idstr!r} {found.instance_id} again")
        if found.section_id in self._ids:
            raise FramingError(
                found.offset + 1, "a section_id that no other device section has", BE32.pack(found.section_id)
            )
        if len(self._names) == _MAX_SECTIONS:
            raise LimitError(found.offset, f"at most {_MAX_SECTIONS} device sections", "more")
        self._names.add(key)
        self._ids.add(found.section_id)


class Ending(enum.Enum):
    """Why the end of a section cannot be told."""

    INCOMPLETE = "more bytes are needed"
    UNKNOWN = "the layout is not known"


class Divisions:
    """How sections of one stream were divided: the vCPUs of a machine mostly have the same subsections."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int, int], tuple[int, tuple[SubsectionAt, ...], _Heads]] = {}

    def again(
        self, data: bytes | bytearray, at: int, header: SectionHeader
    ) -> tuple[int, tuple[SubsectionAt, ...]] | None:
        """What :func:`by_layout` would find, if the section has the same headers at the same places as the last of
        its name: then it would pass over the same fields. None if it has not."""
        last = self._last.get((header.idstr, header.version_id, header.size))
        if last is None:
            return None
        size, subsections, heads = last
        for start, end, head in heads:
            if data[at + start : at + end] != head:
                return None
        end = at + size
        return (end, subsections) if data[end : end + FOOTER_SIZE] == footer(header.section_id) else None

    def remember(self, at: int, header: SectionHeader, end: int, subsections: tuple[SubsectionAt, ...]) -> None:
        """What :func:`by_layout` has found."""
        key = header.idstr, header.version_id, header.size
        self._last[key] = end - at, subsections, tuple(_heads(subsections))


_Heads: TypeAlias = "tuple[tuple[int, int, bytes], ...]"


def _heads(subsections: Iterable[SubsectionAt]) -> Iterator[tuple[int, int, bytes]]:
    for sub in subsections:
        yield sub.start, sub.payload, subsection_header(sub.name, sub.version)
        yield from _heads(sub.children)


def by_layout(
    data: bytes | bytearray, at: int, header: SectionHeader, offset: int, divisions: Divisions | None = None
) -> tuple[int, tuple[SubsectionAt, ...]] | Ending:
    """Where the body of the section at `data[at]` ends, by the layout known for its name and version.

    :param divisions: of the sections before it in the same stream
    :returns: the end in `data`, and the subsections found, counted from the section's start
    :raises LayoutError: the byte after a binding layout is neither a subsection nor the footer
    """
    vmsd = known(header.idstr, header.version_id)
    if vmsd is None:
        return Ending.UNKNOWN
    if divisions is not None and (same := divisions.again(data, at, header)) is not None:
        return same
    end = at + header.size + vmsd.size
    found = _subsections(data, at, end, vmsd.subsections)
    if isinstance(found, Ending):
        return found
    end, subsections = found
    _check_unique(subsections, offset + at)
    expected = footer(header.section_id)
    if len(data) < end + FOOTER_SIZE:
        return Ending.INCOMPLETE
    if data[end : end + FOOTER_SIZE] != expected:
        return _no_footer(data, end, header, vmsd, offset)
    if divisions is not None:
        divisions.remember(at, header, end, subsections)
    return end, subsections


def _check_unique(subsections: Sequence[SubsectionAt], offset: int) -> None:
    """Check that no subsection comes twice: QEMU would load the last one, a reader may look at the first.

    :param offset: where the section stands in the stream
    """
    names: set[str] = set()
    for sub in subsections:
        if sub.name in names:
            raise LayoutError(offset + sub.start, "each subsection once", f"{sub.name!r} again")
        names.add(sub.name)
        _check_unique(sub.children, offset)


def _no_footer(data: bytes | bytearray, end: int, header: SectionHeader, vmsd: Vmsd, offset: int) -> Ending:
    if data[end] == SectionType.SUBSECTION or not vmsd.binding:
        return Ending.UNKNOWN
    raise LayoutError(
        offset + end,
        f"footer {footer(header.section_id).hex(' ')} of section {vmsd.idstr!r} {header.instance_id}",
        bytes(data[end : end + FOOTER_SIZE]),
    )


def _subsections(
    data: bytes | bytearray, base: int, at: int, table: Mapping[str, Subsection]
) -> tuple[int, tuple[SubsectionAt, ...]] | Ending:
    """Follow the subsections of `table` from `data[at]`; offsets of the result count from `base`.

    Stops at the first byte that is no subsection, or at a subsection of another parent.
    """
    found: list[SubsectionAt] = []
    while True:
        if len(data) <= at:
            return Ending.INCOMPLETE
        if data[at] != SectionType.SUBSECTION or len(found) == _MAX_SUBSECTIONS:
            return at, tuple(found)
        if len(data) < at + 2 or len(data) < (name_end := at + 2 + data[at + 1]) + 4:
            return Ending.INCOMPLETE
        name = bytes(data[at + 2 : name_end]).decode("latin-1")
        sub = table.get(name)
        if sub is None:
            return at, tuple(found)
        version = BE32.unpack_from(data, name_end)[0]
        if version != sub.version:
            return Ending.UNKNOWN
        payload = name_end + 4
        inner = _subsections(data, base, payload + sub.layout.size, sub.children)
        if isinstance(inner, Ending):
            return inner
        end, children = inner
        found.append(SubsectionAt(name, version, at - base, payload - base, end - base, children))
        at = end


def by_vmdesc(
    data: bytes | bytearray, at: int, devices: Sequence[Device], offset: int
) -> tuple[list[DeviceSection], int]:
    """Divide `data[at:]` into the sections that vmdesc lists, the last of which is followed by EOF.

    The size of a compressed array of unequal elements is wrong in vmdesc (only the first element's
    is told), so where no footer stands at the computed end it is looked for: it must be followed by
    the header that vmdesc lists next.

    :returns: the sections, and the offset in `data` after the last footer
    :raises LayoutError: the bytes and vmdesc disagree
    """
    sections: list[DeviceSection] = []
    for number, device in enumerate(devices):
        header = next_part(data, at)
        if not isinstance(header, SectionHeader) or not _is(header, device):
            expected = f"section {device.name!r} {device.instance_id}, the next one in vmdesc"
            raise LayoutError(offset + at, expected, bytes(data[at : at + 24]))
        following = devices[number + 1] if number + 1 < len(devices) else None
        end = at + header.size + device.size
        how = DelimitedBy.VMDESC
        if data[end : end + FOOTER_SIZE] != footer(header.section_id):
            how = DelimitedBy.FOOTER
            end = _described_end(data, at, header, following, offset)
        known_end = by_layout(data, at, header, offset)
        vmsd = known(header.idstr, header.version_id)
        binding = vmsd is not None and vmsd.binding
        subsections: tuple[SubsectionAt, ...] = ()
        if isinstance(known_end, tuple) and (binding or known_end[0] == end):
            subsections = known_end[1]
        elif binding:
            subsections = shape_of(device, header.size, offset + at)[1]
            _check_headers(data, at, subsections, offset)
            _check_unique(subsections, offset + at)
        found = section(data, at, header, end, offset, how, subsections)
        if how is DelimitedBy.VMDESC or binding or isinstance(known_end, tuple):
            check_against_vmdesc(found, device)
        sections.append(found)
        at = end + FOOTER_SIZE
    return sections, at


def _check_headers(data: bytes | bytearray, at: int, subsections: Sequence[SubsectionAt], offset: int) -> None:
    """Check that the subsections that vmdesc lists stand where it says."""
    for sub in subsections:
        header = subsection_header(sub.name, sub.version)
        found = bytes(data[at + sub.start : at + sub.payload])
        if found != header:
            raise LayoutError(offset + at + sub.start, f"subsection {sub.name!r}, as vmdesc lists it", found)
        _check_headers(data, at, sub.children, offset)


def _is(header: SectionHeader, device: Device) -> bool:
    return (header.idstr, header.instance_id) == (device.name, device.instance_id)


def _described_end(
    data: bytes | bytearray, at: int, header: SectionHeader, following: Device | None, offset: int
) -> int:
    """The end of a body whose footer is followed by the header of `following`, or by EOF."""
    for end in footer_candidates(data, at + header.size, header.section_id):
        ahead = next_part(data, end + FOOTER_SIZE)
        if following is None and ahead is SectionType.EOF:
            return end
        if following is not None and isinstance(ahead, SectionHeader) and _is(ahead, following):
            return end
    raise LayoutError(
        offset + at,
        f"section {header.idstr!r} {header.instance_id} to end with footer {footer(header.section_id).hex(' ')} "
        "where vmdesc says, or before the section it lists next",
        bytes(data[at : at + 24]),
    )


def section(
    data: bytes | bytearray,
    at: int,
    header: SectionHeader,
    end: int,
    offset: int,
    how: DelimitedBy,
    subsections: tuple[SubsectionAt, ...] = (),
) -> DeviceSection:
    """The event for the section at `data[at]` whose body ends at `data[end]`."""
    return DeviceSection(
        offset + at,
        bytes(memoryview(data)[at : end + FOOTER_SIZE]),
        header.section_id,
        header.idstr,
        header.instance_id,
        header.version_id,
        header.size,
        end - at,
        how,
        subsections,
    )


def without_raw(told: DeviceSection) -> DeviceSection:
    """What is known of a section, without its bytes."""
    return DeviceSection(
        told.offset,
        b"",
        told.section_id,
        told.idstr,
        told.instance_id,
        told.version_id,
        told.body,
        told.body_end,
        told.delimited_by,
        told.subsections,
    )


def check_against_vmdesc(told: DeviceSection, device: Device) -> None:
    """Compare a section, divided by its known layout or by its footer, with what vmdesc says of it.

    :raises LayoutError: another section, another size, or other subsections
    """
    size = told.body_end - told.body
    if (told.idstr, told.instance_id, size) != (device.name, device.instance_id, device.size):
        found = f"section {told.idstr!r} {told.instance_id} of {size} bytes"
        raise LayoutError(told.offset, _listed(device), found)
    vmsd = known(told.idstr, told.version_id)
    if vmsd is None or not (vmsd.binding or told.delimited_by is DelimitedBy.LAYOUT):
        return
    fields_end, subsections = shape_of(device, told.body, told.offset)
    end = subsections[-1].end if subsections else fields_end
    if (fields_end - told.body, end) != (vmsd.size, told.body_end) or subsections != told.subsections:
        names = ", ".join(sub.name for sub in told.subsections) or "no subsections"
        raise LayoutError(
            told.offset,
            f"{_listed(device)} with {fields_end - told.body} bytes of fields and subsections "
            + (", ".join(f"{sub.name} ({sub.end - sub.start})" for sub in subsections) or "none"),
            f"{vmsd.size} bytes of fields and {names}",
        )


def _listed(device: Device) -> str:
    return f"section {device.name!r} {device.instance_id} of {device.size} bytes, as vmdesc lists it"


def by_footers(data: bytes | bytearray, at: int, header: SectionHeader, offset: int) -> DeviceSection | None:
    """The section at `data[at]`, whose end must be found without vmdesc: by its layout, or else by the first
    footer that something can follow. None if there is none in `data`.

    :raises LayoutError: the section has a known layout and does not follow it
    """
    ending = by_layout(data, at, header, offset)
    if isinstance(ending, tuple):
        return section(data, at, header, ending[0], offset, DelimitedBy.LAYOUT, ending[1])
    if ending is Ending.INCOMPLETE:
        return None
    vmsd = known(header.idstr, header.version_id)
    least = vmsd.size if vmsd and vmsd.binding else 0
    for end in footer_candidates(data, at + header.size + least, header.section_id):
        after = end + FOOTER_SIZE
        if after == len(data) or next_part(data, after) is not None:
            subsections = _resynchronised(data, at, header, end, vmsd, offset) if least and vmsd else ()
            return section(data, at, header, end, offset, DelimitedBy.FOOTER, subsections)
    return None


def _resynchronised(
    data: bytes | bytearray, at: int, header: SectionHeader, end: int, vmsd: Vmsd, offset: int
) -> tuple[SubsectionAt, ...]:
    """The subsections of a known section that holds unknown ones too: an unknown one is taken to end
    where a known one begins, or with the section.

    :raises LayoutError: one comes twice, or more than any section has
    """
    # With the footer, so that every subsection is followed by something.
    whole = bytes(memoryview(data)[at : end + FOOTER_SIZE])
    end -= at
    headers = [subsection_header(sub.name, sub.version) for sub in vmsd.subsections.values()]
    known_start = re.compile(b"|".join(map(re.escape, headers)) or b"(?!)")
    found: list[SubsectionAt] = []
    start = header.size + vmsd.size
    while start < end and whole[start] == SectionType.SUBSECTION:
        if len(found) > _MAX_SUBSECTIONS:
            raise LayoutError(offset + at + start, f"at most {_MAX_SUBSECTIONS} subsections", "more")
        followed = _subsections(whole, 0, start, vmsd.subsections)
        if isinstance(followed, Ending) or followed[0] == start or followed[0] > end:
            name_end = min(start + 2 + whole[start + 1], end)
            payload = min(name_end + 4, end)
            match = known_start.search(whole, payload, end)
            stop = match.start() if match else end
            name = whole[start + 2 : name_end]
            label = name.decode("ascii") if is_name(name) else "a subsection without a printable name"
            found.append(SubsectionAt(label, 0, start, payload, stop))
            start = stop
        else:
            start = followed[0]
            found.extend(followed[1])
    _check_unique(found, offset + at)
    return tuple(found)
