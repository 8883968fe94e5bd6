# SPDX-License-Identifier: GPL-2.0-or-later
"""The return path: messages from the destination to the source. All integers are big-endian.

Source: QEMU 10.2.2 migration/migration.c:80-92, 514-536, 2395-2408; the bitmap that follows
RECV_BITMAP outside of the message's length, migration/ram.c:301-354.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qmpfilter.errors import FramingError
from qmpfilter.wire.feed import NEED_DATA, Incremental, Steps
from qmpfilter.wire.framing import BE32, BE64, COMMAND_HEADER
from qmpfilter.wire.names import name_at

__all__ = ["Bitmap", "Message", "MessageType", "RequestPages", "ReturnPathEvent", "ReturnPathParser"]

_BITMAP_END: Final = 0x0123456789ABCDEF  # ram.c:45, RAMBLOCK_RECV_BITMAP_ENDING


class MessageType(enum.IntEnum):
    """Types of return path messages (migration.c:80-92)."""

    SHUT = 1
    PONG = 2
    REQ_PAGES_ID = 3
    REQ_PAGES = 4
    RECV_BITMAP = 5
    RESUME_ACK = 6
    SWITCHOVER_ACK = 7


# The length each message must have; None: it depends on a name (migration.c:2395-2408).
_LENGTHS: Final[Mapping[MessageType, int | None]] = {
    MessageType.SHUT: 4,
    MessageType.PONG: 4,
    MessageType.REQ_PAGES_ID: None,
    MessageType.REQ_PAGES: 12,
    MessageType.RECV_BITMAP: None,
    MessageType.RESUME_ACK: 4,
    MessageType.SWITCHOVER_ACK: 0,
}


@dataclass(frozen=True, slots=True)
class Message:
    """SHUT, PONG, RESUME_ACK with their `value` (SHUT: 0 is success), or SWITCHOVER_ACK with none."""

    offset: int
    raw: bytes
    type: MessageType
    value: int | None = None


@dataclass(frozen=True, slots=True)
class RequestPages:
    """REQ_PAGES or REQ_PAGES_ID: `length` bytes from `start` in a RAM block; None: the block of the last one."""

    offset: int
    raw: bytes
    start: int
    length: int
    block: str | None


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A stretch of the bitmap that follows RECV_BITMAP; the first one of a block carries the message too."""

    offset: int
    raw: bytes | memoryview
    block: str


ReturnPathEvent = Message | RequestPages | Bitmap


class ReturnPathParser(Incremental[ReturnPathEvent]):
    """Parses the other direction of a main channel."""

    def _grammar(self) -> Steps[ReturnPathEvent, None]:
        feed = self._feed
        while True:
            while not feed.available:
                yield NEED_DATA
            offset = feed.offset
            head = yield from feed.take(4, "a return path message")
            code, length = COMMAND_HEADER.unpack(head)
            try:
                kind = MessageType(code)
            except ValueError:
                raise FramingError(offset, "a return path message from 1 to 7", head) from None
            if _LENGTHS[kind] not in (None, length):
                raise FramingError(offset + 2, f"length {_LENGTHS[kind]} of {kind.name}", head[2:])
            payload = yield from feed.take(length, f"the payload of {kind.name}")
            if kind is MessageType.RECV_BITMAP:
                yield from self._bitmap(offset, head + payload, payload)
            elif kind in (MessageType.REQ_PAGES, MessageType.REQ_PAGES_ID):
                yield _request(offset, head + payload, payload, named=kind is MessageType.REQ_PAGES_ID)
            else:
                value = BE32.unpack(payload)[0] if payload else None
                yield Message(offset, head + payload, kind, value)

    def _bitmap(self, offset: int, raw: bytes, payload: bytes) -> Steps[ReturnPathEvent, None]:
        if not payload or payload[0] != len(payload) - 1:
            raise FramingError(offset, "RECV_BITMAP with the name of a RAM block", raw)
        block = name_at(payload[1:], offset + 5, "a RAM block")
        size = yield from self._feed.take(8, "a received bitmap's size")
        yield Bitmap(offset, raw + size, block)
        remaining = BE64.unpack(size)[0]
        while remaining:
            at = self._feed.offset
            part = yield from self._feed.take_part(remaining, "a bitmap")
            remaining -= len(part)
            yield Bitmap(at, part, block)
        at = self._feed.offset
        end = yield from self._feed.take(8, "a received bitmap's end mark")
        if BE64.unpack(end)[0] != _BITMAP_END:
            raise FramingError(at, f"the end mark {_BITMAP_END:016x} of a bitmap", end)
        yield Bitmap(at, end, block)


def _request(offset: int, raw: bytes, payload: bytes, *, named: bool) -> RequestPages:
    if named and (len(payload) < 13 or payload[12] != len(payload) - 13):
        raise FramingError(offset, "REQ_PAGES_ID with the name of a RAM block", raw)
    block = name_at(payload[13:], offset + 17, "a RAM block") if named else None
    return RequestPages(offset, raw, BE64.unpack_from(payload)[0], BE32.unpack_from(payload, 8)[0], block)
