# SPDX-License-Identifier: GPL-2.0-or-later
"""The parser's input: what is consumed, what is waited for, what is copied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpfilter.errors import BugError, TruncatedError
from qmpfilter.wire.feed import NEED_DATA, Feed, Steps
from tests.helpers.parse import drive, raises_at


def taken(*counts: int) -> Callable[[Feed], Steps[None, list[bytes]]]:
    """A step that takes stretches of these lengths."""

    def body(feed: Feed) -> Steps[None, list[bytes]]:
        result = []
        for count in counts:
            result.append((yield from feed.take(count, "a test")))
        return result

    return body


@pytest.mark.parametrize("size", [None, 1, 2, 3, 5])
def test_take(size: int | None) -> None:
    assert drive(taken(1, 4, 0, 2), b"abcdefgh", size)[1] == [b"a", b"bcde", b"", b"fg"]


def test_take_counts_from_the_first_offset() -> None:
    feed = Feed(offset=100)
    feed.give(b"abcd")
    with pytest.raises(StopIteration) as done:
        next(feed.take(3, "a test"))
    assert (done.value.value, feed.offset, feed.available) == (b"abc", 103, 1)


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("data", "found"), [(b"ab", "the end of input"), (b"abc", "the end of input after 1 of them")]
)
def test_take_beyond_the_end(data: bytes, found: str, size: int | None) -> None:
    with raises_at(TruncatedError, 2, "4 bytes of a test"):
        drive(taken(2, 4), data, size)
    with pytest.raises(TruncatedError) as caught:
        drive(taken(2, 4), data, size)
    assert caught.value.found == found


@pytest.mark.parametrize("size", [None, 1, 2])
def test_peek_consumes_nothing(size: int | None) -> None:
    def body(feed: Feed) -> Steps[None, tuple[bytes, int, bytes, bytes]]:
        ahead = yield from feed.peek(3, "a test")
        offset = feed.offset
        again = yield from feed.peek(2, "a test")
        return ahead, offset, again, (yield from feed.take(4, "a test"))

    assert drive(body, b"abcde", size)[1:] == ((b"abc", 0, b"ab", b"abcd"), 4)


def test_peek_beyond_the_end() -> None:
    with raises_at(TruncatedError, 0, "3 bytes of a test"):
        drive(lambda feed: feed.peek(3, "a test"), b"ab")


def test_take_available_takes_what_is_there() -> None:
    def body(feed: Feed) -> Steps[None, list[bytes]]:
        parts = []
        while part := (yield from feed.take_available(3)):
            parts.append(bytes(part))
        return parts

    assert drive(body, b"abcdefgh", None)[1] == [b"abc", b"def", b"gh"]
    assert drive(body, b"abcdefgh", 4)[1] == [b"abc", b"d", b"efg", b"h"]
    assert drive(body, b"", None)[1] == []


def test_take_available_copies_nothing() -> None:
    feed = Feed()
    buffer = bytearray(b"abcd")
    feed.give(buffer)
    with pytest.raises(StopIteration) as done:
        next(feed.take_available(4))
    assert isinstance(done.value.value, memoryview)
    assert done.value.value.obj is buffer


@pytest.mark.parametrize("size", [None, 1])
def test_unread(size: int | None) -> None:
    def body(feed: Feed) -> Steps[None, tuple[bytes, int, bytes, bytes]]:
        first = yield from feed.take(4, "a test")
        feed.unread(first[1:])
        offset = feed.offset
        rest = yield from feed.take_available(10)
        return first, offset, bytes(rest), (yield from feed.take(2, "a test"))

    assert drive(body, b"abcdef", size)[1:] == ((b"abcd", 1, b"bcd", b"ef"), 6)


def test_straddles_only_between_two_buffers() -> None:
    feed = Feed()
    feed.give(b"ab")
    step: Steps[None, bytes] = feed.take(3, "a test")
    assert not feed.straddles()
    assert next(step) is NEED_DATA
    assert feed.straddles()
    assert feed.available == 2
    feed.give(b"cd")
    with pytest.raises(StopIteration):
        next(step)
    assert not feed.straddles()
    assert (feed.offset, feed.available) == (3, 1)


def test_refuses_data_out_of_turn() -> None:
    feed = Feed()
    feed.give(b"ab")
    with pytest.raises(BugError):
        feed.give(b"cd")
    closed = Feed()
    closed.close()
    with pytest.raises(BugError):
        closed.give(b"")


def test_sentinel_names_itself() -> None:
    assert repr(NEED_DATA) == "NEED_DATA"


@given(st.binary(max_size=40), st.lists(st.integers(0, 9), max_size=12), st.integers(1, 9))
def test_any_division_gives_the_same(data: bytes, counts: list[int], size: int) -> None:
    counts = [count for at, count in enumerate(counts) if sum(counts[: at + 1]) <= len(data)]
    whole, parts = drive(taken(*counts), data), drive(taken(*counts), data, size)
    assert whole == parts
    assert b"".join(whole[1]) == data[: sum(counts)]
