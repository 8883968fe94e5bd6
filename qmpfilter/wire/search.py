# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds vmdesc in held bytes of which it is not known where their sections end.

What comes before and after the start of vmdesc is searched: the last footer, EOF, the head of
VMDESCRIPTION and the first two characters of its text: ``7e <be32> 00 06 <be32 length> {"``. A hostile
guest decides what stands in its devices' state, so there may be many such places, and only what is
found to be vmdesc is one.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from qmpfilter.errors import LimitError
from qmpfilter.wire.framing import BE32, FOOTER_SIZE

__all__ = ["DESCRIPTION_HEAD", "Place", "VmdescSearch", "first_eof"]

DESCRIPTION_HEAD: Final = 5  # type byte, be32 length

# A match takes one byte, so that of two places that overlap both are found.
_AHEAD: Final = re.compile(rb"\x7e(?=.{4}\x00\x06(.{4})\{\")", re.DOTALL)
_AHEAD_SIZE: Final = FOOTER_SIZE + 1 + DESCRIPTION_HEAD + 2
_MAX_PLACES: Final = 256
_MAX_EXAMINED: Final = 192 << 20


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place that looks like EOF and vmdesc: the text's end, and the EOF byte."""

    end: int
    eof: int

    @property
    def text(self) -> int:
        """Where the text starts."""
        return self.eof + 1 + DESCRIPTION_HEAD


def first_eof(held: bytearray, place: Place) -> int:
    """Where EOF stands if not at that place, but at the first that looks like one."""
    match = _AHEAD.search(held, 0, place.end)
    return place.eof if match is None else match.start() + FOOTER_SIZE


class VmdescSearch:
    """One search over bytes that grow at their end.

    :param offset: stream offset of the first held byte, for errors
    :param limit: bytes of text that are accepted
    """

    def __init__(self, offset: int, limit: int) -> None:
        self._offset = offset
        self._limit = limit
        self._searched = 0
        self._found = 0
        self._examined = 0
        self._waiting: list[Place] = []

    def places(self, held: bytearray, end: int) -> Iterator[Place]:
        """The places in ``held[:end]`` that are complete and were not given before, in the order of their ends.

        All is done in the order of the stream, so that nothing depends on how it was divided.

        :raises LimitError: too many places, or too many bytes in them; its offset is where that was noticed
        """
        for match in list(_AHEAD.finditer(held, self._searched, end)):
            yield from self._complete(match.start() + _AHEAD_SIZE)
            self._found += 1
            if self._found > _MAX_PLACES:
                limit = f"at most {_MAX_PLACES} places that look like vmdesc"
                raise LimitError(self._offset + match.start(), limit, "one more")
            length = BE32.unpack(match[1])[0]
            eof = match.start() + FOOTER_SIZE
            if length <= self._limit:
                heapq.heappush(self._waiting, Place(eof + 1 + DESCRIPTION_HEAD + length, eof))
        yield from self._complete(end + 1)
        self._searched = max(self._searched, end - _AHEAD_SIZE + 1)

    def _complete(self, before: int) -> Iterator[Place]:
        while self._waiting and self._waiting[0].end < before:
            place = heapq.heappop(self._waiting)
            self._examined += place.end
            if self._examined > _MAX_EXAMINED:
                raise LimitError(self._offset + place.end, "vmdesc", "too much that only looks like it")
            yield place
