# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages from the destination to the source."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from qmpfilter.errors import BugError, FramingError, StreamError, TruncatedError
from qmpfilter.wire.feed import NEED_DATA
from qmpfilter.wire.returnpath import (
    Bitmap,
    Message,
    MessageType,
    RequestPages,
    ReturnPathEvent,
    ReturnPathParser,
)
from tests.helpers import build
from tests.helpers.parse import rejoined, told_by


def message(code: int, payload: bytes = b"") -> bytes:
    return build.be((2, code), (2, len(payload))) + payload


def parse(
    data: bytes, chunks: int | list[int] | None = None
) -> tuple[list[ReturnPathEvent], tuple[type[StreamError], int] | None]:
    """Events, of which the stretches of one bitmap are joined, and the error's type and offset."""
    told: tuple[list[ReturnPathEvent], StreamError | None] = told_by(ReturnPathParser(), data, chunks)
    events, error = told
    joined: list[ReturnPathEvent] = []
    for _, group in itertools.groupby(
        enumerate(events), lambda one: (Bitmap, one[1].block) if isinstance(one[1], Bitmap) else (None, one[0])
    ):
        stretch = [event for _, event in group]
        joined.append(dataclasses.replace(stretch[0], raw=rejoined(stretch)))
    return joined, None if error is None else (type(error), error.offset)


END = bytes.fromhex("0123456789abcdef")
PONG = message(2, b"\0\0\0\1")
PAGES = message(4, build.be((8, 0x3000), (4, 0x2000)))
PAGES_OF = message(3, build.be((8, 0x1000), (4, 0x1000)) + build.label("pc.ram"))
BITMAP = message(5, build.label("pc.ram")) + build.be((8, 5)) + b"\xff\0\xff\1\2" + END
EMPTY_BITMAP = message(5, build.label("rom")) + build.be((8, 0)) + END

MESSAGES: list[tuple[bytes, ReturnPathEvent]] = [
    (PONG, Message(0, PONG, MessageType.PONG, 1)),
    (message(1, bytes(4)), Message(0, bytes.fromhex("0001 0004 00000000"), MessageType.SHUT, 0)),
    (message(1, b"\0\0\0\1"), Message(0, bytes.fromhex("0001 0004 00000001"), MessageType.SHUT, 1)),
    (message(6, b"\0\0\0\1"), Message(0, message(6, b"\0\0\0\1"), MessageType.RESUME_ACK, 1)),
    (message(7), Message(0, message(7), MessageType.SWITCHOVER_ACK)),
    (PAGES, RequestPages(0, PAGES, 0x3000, 0x2000, None)),
    (PAGES_OF, RequestPages(0, PAGES_OF, 0x1000, 0x1000, "pc.ram")),
    (BITMAP, Bitmap(0, BITMAP, "pc.ram")),
    (EMPTY_BITMAP, Bitmap(0, EMPTY_BITMAP, "rom")),
]
ALL = b"".join(raw for raw, _ in MESSAGES)


def test_messages_are_those_of_qemu() -> None:
    assert [kind.name for kind in MessageType] == [
        "SHUT", "PONG", "REQ_PAGES_ID", "REQ_PAGES", "RECV_BITMAP", "RESUME_ACK", "SWITCHOVER_ACK",
    ]  # fmt: skip
    assert [kind.value for kind in MessageType] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(("raw", "event"), MESSAGES)
def test_message(raw: bytes, event: ReturnPathEvent, size: int | None) -> None:
    assert parse(raw, size) == ([event], None)


def test_one_after_the_other_split_anywhere() -> None:
    expected: list[ReturnPathEvent] = []
    for _, event in MESSAGES:
        expected.append(dataclasses.replace(event, offset=len(rejoined(expected))))
    assert parse(ALL) == (expected, None)
    for cut in range(1, len(ALL)):
        assert parse(ALL, [cut]) == (expected, None), cut
    assert parse(ALL, 1) == (expected, None)


def test_cut_anywhere() -> None:
    ends = set(itertools.accumulate(len(raw) for raw, _ in MESSAGES))
    for cut in range(1, len(ALL)):
        events, fault = parse(ALL[:cut])
        told = rejoined(events)
        assert ALL.startswith(told)
        if cut in ends:
            assert (len(told), fault) == (cut, None)
        else:
            assert fault is not None
            assert fault[0] is TruncatedError
            assert len(told) <= fault[1] <= cut


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("wrong", "at"),
    [
        (message(0), 0),
        (message(8), 0),
        (message(0xFFFF), 0),
        (message(1), 2),
        (message(2, b"12345"), 2),
        (message(4, bytes(11)), 2),
        (message(6), 2),
        (message(7, b"1"), 2),
        (message(3, bytes(12)), 0),
        (message(3, bytes(12) + b"\3ab"), 0),
        (message(3, bytes(12) + b"\1ab"), 0),
        (message(5), 0),
        (message(5, b"\3ab"), 0),
        (message(5, b"\1ab"), 0),
        (BITMAP[:-8] + bytes(8), len(BITMAP) - 8),
    ],
)
def test_refused(wrong: bytes, at: int, size: int | None) -> None:
    events, fault = parse(PONG + wrong, size)
    assert fault == (FramingError, len(PONG) + at)
    assert events[0] == Message(0, PONG, MessageType.PONG, 1)


def test_huge_bitmap_streams_through() -> None:
    head = message(5, build.label("pc.ram")) + build.be((8, 2**64 - 1))
    assert parse(head + b"abc") == ([Bitmap(0, head + b"abc", "pc.ram")], (TruncatedError, len(head) + 3))


def test_errors_are_final() -> None:
    parser = ReturnPathParser()
    parser.receive_data(message(9) + PONG)
    with pytest.raises(FramingError) as first:
        parser.next_event()
    with pytest.raises(FramingError) as again:
        parser.next_event()
    assert again.value is first.value


def test_waits_for_data_and_after_the_end() -> None:
    parser = ReturnPathParser()
    assert parser.next_event() is NEED_DATA
    parser.receive_eof()
    assert parser.next_event() is NEED_DATA
    with pytest.raises(BugError):
        parser.receive_data(PONG)


@pytest.mark.parametrize("code", [3, 5], ids=["REQ_PAGES_ID", "RECV_BITMAP"])
def test_block_names_are_printable(code: int) -> None:
    before = build.be((8, 0), (4, 1)) if code == 3 else b""
    data = message(code, before + build.label(b"pc\x1b["))
    assert parse(data)[1] == (FramingError, len(data) - 4)
