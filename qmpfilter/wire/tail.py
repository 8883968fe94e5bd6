# SPDX-License-Identifier: GPL-2.0-or-later
"""The tail of a precopy stream: device sections, EOF, vmdesc.

Sections of known layout are told as they come. From the first one whose end is not known, bytes are
held until vmdesc has arrived, which delimits them all. When vmdesc is there every section, held or
not, was checked against it before its EOF is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qmpfilter.errors import FramingError, LayoutError, LimitError, StreamError, TruncatedError
from qmpfilter.wire import cpu
from qmpfilter.wire.devices import known
from qmpfilter.wire.events import DelimitedBy, DeviceSection, Event, SectionsEnd, SectionsHeld, VmDescriptionReceived
from qmpfilter.wire.feed import Feed, Steps
from qmpfilter.wire.footers import SectionHeader, footer_candidates, is_incomplete, next_part, section_header
from qmpfilter.wire.framing import BE32, FOOTER_SIZE, SectionType
from qmpfilter.wire.search import DESCRIPTION_HEAD, Place, VmdescSearch, first_eof
from qmpfilter.wire.sections import (
    Divisions,
    Ending,
    SeenSections,
    by_footers,
    by_layout,
    by_vmdesc,
    check_against_vmdesc,
    section,
    without_raw,
)
from qmpfilter.wire.vmdesc import VmDescription
from qmpfilter.wire.withdrawal import check_withdrawn, check_withdrawn_at_end

__all__ = ["Tail", "early_section"]

# The name in the header of a vCPU's section, with its length.
_VCPU: Final = bytes([len(cpu.IDSTR)]) + cpu.IDSTR.encode()
_BEFORE_NAME: Final = 5  # type byte, be32 section_id


class Tail:
    """What of a stream's tail must be remembered until vmdesc arrives.

    :param limit: bytes of device sections that may be held
    :param vmdesc_limit: bytes of vmdesc text that may be held
    """

    def __init__(self, limit: int, vmdesc_limit: int) -> None:
        self._limit = limit
        self._vmdesc_limit = vmdesc_limit
        self._told: list[DeviceSection] = []
        self.seen = SeenSections()
        # How many of them vmdesc did not divide.
        self._undivided: int | None = None
        # What has delimited the held sections.
        self._found: VmDescriptionReceived | None = None

    def tell(self, found: DeviceSection) -> DeviceSection:
        """Remember a section for the check against vmdesc.

        :raises FramingError: the stream has had a section of that name and instance, or of that section_id
        :raises LimitError: more sections than any machine has
        """
        self.seen.add(found)
        self._told.append(without_raw(found))
        return found

    def sections(self, feed: Feed) -> Steps[Event, None]:
        """All device sections up to and with the EOF byte.

        :raises FramingError: something else than a device section or EOF
        :raises LayoutError: a section is neither known nor described, or both but differently
        :raises LimitError: more bytes than may be held
        :raises TruncatedError: the input ends before vmdesc
        """
        held = bytearray()
        offset = feed.offset
        divisions = Divisions()
        while (found := _first(held, offset, divisions)) is not Ending.UNKNOWN:
            if isinstance(found, Ending):
                more = yield from feed.take_available(self._limit)
                if not more:
                    raise TruncatedError(offset + len(held), "the rest of a device section", "the end of input")
                held += more
                continue
            yield found if isinstance(found, SectionsEnd) else self.tell(found)
            del held[: len(found.raw)]
            offset += len(found.raw)
            if isinstance(found, SectionsEnd):
                feed.unread(bytes(held))
                return
        yield from self._hold(feed, held, offset)

    def _hold(self, feed: Feed, held: bytearray, offset: int) -> Steps[Event, None]:
        """Wait for vmdesc, tell the held sections and EOF, and leave vmdesc itself to `description`."""
        most = self._limit + self._vmdesc_limit
        search = VmdescSearch(offset, self._vmdesc_limit)
        refuted: StreamError | None = None
        try:
            while True:
                for place in search.places(held, min(len(held), most)):
                    if refuted is None and (ahead := _ahead(held, place)):
                        yield SectionsHeld(offset, ahead)
                    sections = self._divided(held, offset, place)
                    if isinstance(sections, StreamError):
                        refuted = sections
                        continue
                    self._undivided = len(self._told)
                    yield from map(self.tell, sections)
                    yield SectionsEnd(offset + place.eof, bytes(held[place.eof : place.eof + 1]))
                    feed.unread(bytes(memoryview(held)[place.end :]))
                    return
                if len(held) >= most:
                    raise LimitError(offset + most, f"vmdesc after at most {self._limit} bytes of sections", "more")
                more = yield from feed.take_available(self._limit)
                if not more:
                    break
                held += more
        except LimitError as error:
            yield from self._salvaged(held[: error.offset - offset], offset)
            raise
        yield from self._salvaged(held, offset)
        check_withdrawn_at_end(held, offset)
        raise refuted or TruncatedError(offset + len(held), "vmdesc after the device sections", "the end of input")

    def _divided(self, held: bytearray, offset: int, place: Place) -> list[DeviceSection] | StreamError:
        """The held sections if vmdesc stands at that place, else why it does not."""
        try:
            raw = bytes(memoryview(held)[place.eof + 1 : place.end])
            vmdesc = VmDescription.parse(raw[DESCRIPTION_HEAD:], offset + place.text)
            sections, end = by_vmdesc(held, 0, vmdesc.devices[len(self._told) :], offset)
            if end != place.eof:
                found_instead = bytes(held[end : end + 8])
                raise LayoutError(offset + end, "EOF after the last section that vmdesc lists", found_instead)
            seen = self.seen.copy()
            for found in sections:
                seen.add(found)
        except StreamError as error:
            return error
        self._found = VmDescriptionReceived(offset + place.eof + 1, raw, vmdesc)
        return sections

    def _salvaged(self, held: bytearray, offset: int) -> Iterator[DeviceSection]:
        """Sections of a stream that is lost: they may still tell whoever looks at it what it was."""
        at = 0
        while isinstance(header := next_part(held, at), SectionHeader):
            try:
                found = by_footers(held, at, header, offset)
                if found is None:
                    return
                self.tell(found)
            except StreamError:
                return
            yield found
            at += len(found.raw)

    def description(self, feed: Feed) -> Steps[Event, None]:
        """vmdesc, checked against every section told before.

        :raises FramingError: something else follows EOF
        :raises LayoutError: vmdesc and a section disagree
        :raises LimitError: the text is longer than may be held
        """
        event = self._found or (yield from self._description(feed))
        devices = event.vmdesc.devices
        if len(devices) != len(self._told):
            found = f"{len(self._told)} of them"
            raise LayoutError(event.offset, f"the {len(devices)} device sections that vmdesc lists", found)
        for told, device in zip(self._told[: self._undivided], devices, strict=False):
            check_against_vmdesc(told, device)
        yield event

    def _description(self, feed: Feed) -> Steps[Event, VmDescriptionReceived]:
        yield from feed.peek(1, "a section's type byte")
        offset = feed.offset
        head = yield from feed.take(DESCRIPTION_HEAD, "vmdesc")
        if head[0] != SectionType.VMDESCRIPTION:
            raise FramingError(offset, "vmdesc 06 after EOF (do not set suppress-vmdesc)", head[:1])
        length = BE32.unpack_from(head, 1)[0]
        if length > self._vmdesc_limit:
            raise LimitError(offset + 1, f"a vmdesc of at most {self._vmdesc_limit} bytes", head[1:])
        text = yield from feed.take(length, "vmdesc")
        return VmDescriptionReceived(offset, head + text, VmDescription.parse(text, offset + len(head)))

    @staticmethod
    def end(feed: Feed) -> Steps[Event, None]:
        """The EOF byte that ends a postcopy stream."""
        offset = feed.offset
        raw = yield from feed.take(1, "EOF")
        yield SectionsEnd(offset, raw)


def _first(held: bytearray, offset: int, divisions: Divisions) -> DeviceSection | SectionsEnd | Ending:
    """The section or EOF at the start of `held`, if its end is known by its layout."""
    if not held:
        return Ending.INCOMPLETE
    if held[0] == SectionType.EOF:
        return SectionsEnd(offset, bytes(held[:1]))
    if held[0] != SectionType.FULL:
        raise FramingError(offset, "a device section or EOF", bytes(held[:1]))
    header = section_header(held, 0)
    if isinstance(header, str):
        check_withdrawn(held, offset)
        raise FramingError(offset, header, bytes(held[:24]))
    if header is None:
        return Ending.INCOMPLETE
    ending = by_layout(held, 0, header, offset, divisions)
    if isinstance(ending, Ending):
        return ending
    return section(held, 0, header, ending[0], offset, DelimitedBy.LAYOUT, ending[1])


def _ahead(held: bytearray, place: Place) -> bytes:
    """With what the held sections begin in which neither a vCPU's section nor EOF begins, wherever they end.

    :param place: the first one that is whole
    """
    eof = first_eof(held, place)
    vcpu = held.find(_VCPU, 0, eof + _BEFORE_NAME + len(_VCPU))
    return bytes(held[: eof if vcpu < 0 else max(min(eof, vcpu - _BEFORE_NAME), 0)])


def early_section(feed: Feed, limit: int, tail: Tail) -> Steps[Event, None]:
    """A device section that comes during SETUP, before vmdesc can help (virtio-mem, QEMU 10.2.2
    hw/virtio/virtio-mem.c:1441): its footer is taken for real if a whole part header follows it.

    :param limit: bytes to search at most
    :raises FramingError: a broken header, or a device that is never saved early
    :raises LimitError: no footer within the limit
    :raises TruncatedError: the input ends before
    """
    offset = feed.offset
    held = bytearray()
    searched = 0
    while True:
        header = section_header(held, 0)
        if isinstance(header, str):
            check_withdrawn(held, offset)
            raise FramingError(offset, header, bytes(held[:24]))
        if header is not None:
            if known(header.idstr, header.version_id) is not None:
                raise FramingError(offset, "a device that is saved before RAM, as virtio-mem is", f"{header.idstr!r}")
            searched = max(searched, header.size)
            waiting = False
            for end in footer_candidates(held, searched, header.section_id):
                if end > limit:
                    break
                part = next_part(held, end + FOOTER_SIZE)
                if part is not None and part is not SectionType.EOF:
                    yield tail.tell(section(held, 0, header, end, offset, DelimitedBy.FOOTER))
                    feed.unread(bytes(memoryview(held)[end + FOOTER_SIZE :]))
                    return
                searched = end
                waiting = is_incomplete(held, end + FOOTER_SIZE)
                if waiting:
                    break
                searched += 1
            if not waiting:
                searched = max(searched, len(held) - FOOTER_SIZE + 1)
                if searched > limit:
                    raise LimitError(
                        offset, f"an early device section of at most {limit} bytes", "more without a footer"
                    )
        more = yield from feed.take_available(limit)
        if not more:
            raise TruncatedError(offset + len(held), "the rest of an early device section", "the end of input")
        held += more
