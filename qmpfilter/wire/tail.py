# SPDX-License-Identifier: GPL-2.0-or-later
"""The tail of a precopy stream: device sections, EOF, vmdesc.

Sections of known layout are told as they come. From the first one whose end is not known, bytes are
held until vmdesc has arrived, which delimits them all. When vmdesc is there every section, held or
not, was checked against it before its EOF is told.

To find vmdesc in held bytes without knowing where the sections end, its surroundings are searched:
``7e <be32> 00 06 <be32 length> {"``. What is found counts only if the text is a vmdesc that divides
the held bytes exactly, up to that EOF.
"""

from __future__ import annotations

import dataclasses
import heapq
import re
from dataclasses import dataclass
from typing import Final

from qmpfilter.errors import FramingError, LayoutError, LimitError, StreamError, TruncatedError
from qmpfilter.wire.devices import known
from qmpfilter.wire.events import DelimitedBy, DeviceSection, Event, SectionsEnd, VmDescriptionReceived
from qmpfilter.wire.feed import Feed, Steps
from qmpfilter.wire.footers import SectionHeader, footer_candidates, is_incomplete, next_part, section_header
from qmpfilter.wire.framing import BE32, FOOTER_SIZE, SectionType
from qmpfilter.wire.sections import Ending, Told, by_footers, by_layout, by_vmdesc, check_against_vmdesc, section
from qmpfilter.wire.vmdesc import VmDescription

__all__ = ["Tail", "early_section"]

_DESCRIPTION_HEAD: Final = 5  # type byte, be32 length
# A match takes one byte, so that of two places that overlap both are found.
_VMDESC_AHEAD: Final = re.compile(rb"\x7e(?=.{4}\x00\x06(.{4})\{\")", re.DOTALL)
_VMDESC_AHEAD_SIZE: Final = FOOTER_SIZE + 1 + _DESCRIPTION_HEAD + 2
# How often vmdesc may be mistaken: a hostile guest decides what stands in its devices' state.
_MAX_CANDIDATES: Final = 256
# Bytes that may be examined for it in all.
_MAX_EXAMINED: Final = 192 << 20


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A place in held bytes that looks like EOF and vmdesc: `eof` is the EOF byte, `length` the text's."""

    eof: int
    length: int

    @property
    def text(self) -> int:
        return self.eof + 1 + _DESCRIPTION_HEAD

    @property
    def end(self) -> int:
        return self.text + self.length


class Tail:
    """What of a stream's tail must be remembered until vmdesc arrives.

    :param limit: bytes of device sections that may be held
    :param vmdesc_limit: bytes of vmdesc text that may be held
    """

    def __init__(self, limit: int, vmdesc_limit: int) -> None:
        self._limit = limit
        self._vmdesc_limit = vmdesc_limit
        self._told: list[DeviceSection] = []
        self.once = Told()
        # Offsets of sections that end elsewhere than vmdesc says, which by_vmdesc has found to be right.
        self._inexact: set[int] = set()

    def tell(self, found: DeviceSection) -> DeviceSection:
        """Remember a section for the check against vmdesc.

        :raises FramingError: the stream has had a section of that name and instance, or of that section_id
        :raises LimitError: more sections than any machine has
        """
        self.once.add(found)
        self._told.append(dataclasses.replace(found, raw=b""))
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
        while (found := _first(held, offset)) is not Ending.UNKNOWN:
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
        searched = count = examined = 0
        candidates: list[tuple[int, int, _Candidate]] = []
        error: StreamError | None = None
        broken: StreamError | None = None
        while error is None:
            # All is done in the order of the stream, so that the result does not depend on how it was divided.
            end = min(len(held), most)
            for match in (*_VMDESC_AHEAD.finditer(held, searched, end), None):
                seen = end + 1 if match is None else match.start() + _VMDESC_AHEAD_SIZE
                while candidates and candidates[0][0] < seen:
                    candidate = heapq.heappop(candidates)[2]
                    examined += candidate.end
                    if examined > _MAX_EXAMINED:
                        end = candidate.end
                        error = LimitError(offset + end, "a vmdesc", "too much that only looks like one")
                        break
                    divided = self._divided(held, offset, candidate)
                    if isinstance(divided, StreamError):
                        broken = divided
                        continue
                    for found in divided:
                        if found.delimited_by is DelimitedBy.FOOTER:
                            self._inexact.add(found.offset)
                        yield self.tell(found)
                    yield SectionsEnd(offset + candidate.eof, bytes(held[candidate.eof : candidate.eof + 1]))
                    feed.unread(bytes(memoryview(held)[candidate.eof + 1 :]))
                    return
                if match is None or error is not None:
                    break
                count += 1
                if count > _MAX_CANDIDATES:
                    end = match.start()
                    error = LimitError(
                        offset + end, f"at most {_MAX_CANDIDATES} places that look like vmdesc", "more"
                    )
                    break
                candidate = _Candidate(match.start() + FOOTER_SIZE, BE32.unpack(match[1])[0])
                if candidate.length <= self._vmdesc_limit:
                    heapq.heappush(candidates, (candidate.end, candidate.eof, candidate))
            searched = max(searched, end - _VMDESC_AHEAD_SIZE + 1)
            if error is None and end == most:
                error = LimitError(offset, f"device sections of at most {self._limit} bytes", "more without vmdesc")
            if error is None:
                more = yield from feed.take_available(self._limit)
                if not more:
                    cut = TruncatedError(offset + len(held), "vmdesc after the device sections", "the end of input")
                    error = broken or cut
                held += more
        del held[end:]
        # The stream is lost, but its sections may still tell whoever looks at it what it was.
        at = 0
        while isinstance(header := next_part(held, at), SectionHeader):
            try:
                salvaged = by_footers(held, at, header, offset)
                if salvaged is None:
                    break
                self.tell(salvaged)
            except StreamError:
                break
            yield salvaged
            at += len(salvaged.raw)
        raise error

    def _divided(self, held: bytearray, offset: int, candidate: _Candidate) -> list[DeviceSection] | StreamError:
        """The held sections if the candidate is vmdesc, else why it is none."""
        try:
            text = bytes(memoryview(held)[candidate.text : candidate.end])
            vmdesc = VmDescription.parse(text, offset + candidate.text)
            sections, end = by_vmdesc(held, 0, vmdesc.devices[len(self._told) :], offset)
            if end != candidate.eof:
                found_instead = bytes(held[end : end + 8])
                raise LayoutError(offset + end, "EOF after the last section that vmdesc lists", found_instead)
            once = self.once.copy()
            for found in sections:
                once.add(found)
        except StreamError as error:
            return error
        return sections

    def description(self, feed: Feed) -> Steps[Event, None]:
        """vmdesc, checked against every section told before.

        :raises FramingError: something else follows EOF
        :raises LayoutError: vmdesc and a section disagree
        :raises LimitError: the text is longer than may be held
        """
        offset = feed.offset
        head = yield from feed.take(_DESCRIPTION_HEAD, "vmdesc")
        if head[0] != SectionType.VMDESCRIPTION:
            raise FramingError(offset, "vmdesc 06 after EOF (do not set suppress-vmdesc)", head[:1])
        length = BE32.unpack_from(head, 1)[0]
        if length > self._vmdesc_limit:
            raise LimitError(offset + 1, f"a vmdesc of at most {self._vmdesc_limit} bytes", head[1:])
        text = yield from feed.take(length, "vmdesc")
        vmdesc = VmDescription.parse(text, offset + len(head))
        if len(vmdesc.devices) != len(self._told):
            found = f"{len(self._told)} of them"
            raise LayoutError(offset, f"the {len(vmdesc.devices)} device sections that vmdesc lists", found)
        for told, device in zip(self._told, vmdesc.devices, strict=True):
            if told.offset not in self._inexact:
                check_against_vmdesc(told, device)
        yield VmDescriptionReceived(offset, head + text, vmdesc)

    @staticmethod
    def end(feed: Feed) -> Steps[Event, None]:
        """The EOF byte that ends a postcopy stream."""
        offset = feed.offset
        raw = yield from feed.take(1, "EOF")
        yield SectionsEnd(offset, raw)


def _first(held: bytearray, offset: int) -> DeviceSection | SectionsEnd | Ending:
    """The section or EOF at the start of `held`, if its end is known by its layout."""
    if not held:
        return Ending.INCOMPLETE
    if held[0] == SectionType.EOF:
        return SectionsEnd(offset, bytes(held[:1]))
    if held[0] != SectionType.FULL:
        raise FramingError(offset, "a device section or EOF", bytes(held[:1]))
    header = section_header(held, 0)
    if isinstance(header, str):
        raise FramingError(offset, header, bytes(held[:24]))
    if header is None:
        return Ending.INCOMPLETE
    ending = by_layout(held, 0, header, offset)
    if isinstance(ending, Ending):
        return ending
    return section(held, 0, header, ending[0], offset, DelimitedBy.LAYOUT, ending[1])


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
