# SPDX-License-Identifier: GPL-2.0-or-later
"""Feeds a stream to the parser, in any division, and makes what it tells comparable."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pytest

from qmpfilter.errors import StreamError
from qmpfilter.wire.events import Event, IterableData, RamRecords
from qmpfilter.wire.feed import Feed, NeedData
from qmpfilter.wire.parser import Limits, StreamParser

__all__ = ["Parsed", "drain", "drive", "merged", "parse", "pieces", "raises_at", "rejoined", "told_by"]

_E = TypeVar("_E")
_R = TypeVar("_R")
_E_co = TypeVar("_E_co", covariant=True)

_COUNTS = ("normal", "zero", "xbzrle", "compressed", "multifd_flush")


class _Parser(Protocol[_E_co]):
    """What the parsers of both directions have in common."""

    def receive_data(self, data: bytes, /) -> None: ...

    def receive_eof(self) -> None: ...

    def next_event(self) -> _E_co | NeedData: ...


class _HasRaw(Protocol):
    @property
    def raw(self) -> bytes | memoryview: ...


@dataclass(frozen=True)
class Parsed:
    """All that was told of a stream, and the error it ended with, if any. Every `raw` is bytes."""

    events: list[Event]
    error: StreamError | None = None

    @property
    def fault(self) -> tuple[type[StreamError], int] | None:
        """Type and offset of the error."""
        return None if self.error is None else (type(self.error), self.error.offset)

    def of(self, kind: type[_E]) -> list[_E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


def parse(data: bytes, chunks: int | Sequence[int] | None = None, limits: Limits | None = None) -> Parsed:
    """Parse a whole stream and the end of input.

    :param chunks: feed so many bytes at a time; or cut at these offsets; or feed all at once
    """
    if chunks is None and limits is None:
        return _at_once(data)
    told: tuple[list[Event], StreamError | None] = told_by(StreamParser(limits), data, chunks)
    return Parsed(*told)


# Several tests, one after the other, ask the same of one stream.
@functools.lru_cache(maxsize=4)
def _at_once(data: bytes) -> Parsed:
    told: tuple[list[Event], StreamError | None] = told_by(StreamParser(), data)
    return Parsed(*told)


def told_by(
    parser: _Parser[_E], data: bytes, chunks: int | Sequence[int] | None = None
) -> tuple[list[_E], StreamError | None]:
    """Feed a parser to the end of input; returns its events and its error."""
    events: list[_E] = []
    try:
        for piece in pieces(data, chunks):
            parser.receive_data(piece)
            drain(parser, events)
        parser.receive_eof()
        drain(parser, events)
    except StreamError as error:
        return events, error
    return events, None


def drain(parser: _Parser[_E], events: list[_E]) -> None:
    """Append what the parser has to tell until it needs more; views become bytes."""
    while not isinstance(event := parser.next_event(), NeedData):
        events.append(_kept(event))


def pieces(data: bytes, chunks: int | Sequence[int] | None = None) -> list[bytes]:
    """The data in pieces of a size, or cut at offsets."""
    if chunks is None:
        return [data]
    cuts = range(chunks, len(data), chunks) if isinstance(chunks, int) else sorted(chunks)
    return [data[start:end] for start, end in itertools.pairwise([0, *cuts, len(data)])]


def drive(body: Callable[[Feed], Generator[_E | NeedData, None, _R]], data: bytes, chunks: int | None = None,
          ) -> tuple[list[_E], _R, int]:  # fmt: skip
    """Run one step of the parser over the data alone; returns its events, its result, and where it stopped.

    :raises StreamError: the step's own error
    """
    feed = Feed()
    rest = iter(pieces(data, chunks))
    events: list[_E] = []
    steps = body(feed)
    while True:
        try:
            event = next(steps)
        except StopIteration as stop:
            return events, stop.value, feed.offset
        if not isinstance(event, NeedData):
            events.append(_kept(event))
        elif (piece := next(rest, None)) is not None:
            feed.give(piece)
        else:
            feed.close()


def merged(events: Iterable[Event]) -> list[Event]:
    """Events as they would be if the input had not been divided: neighbours that tell of the same bulk are one."""
    return [_joined(list(group)) for _, group in itertools.groupby(enumerate(events), key=_bulk)]


def _bulk(numbered: tuple[int, Event]) -> tuple[type[Event], str | int]:
    """What an event is a stretch of; for one that is no bulk, only itself."""
    number, event = numbered
    match event:
        case RamRecords():
            return RamRecords, event.block
        case IterableData():
            return IterableData, event.idstr
    return type(event), number


def _joined(group: list[tuple[int, Event]]) -> Event:
    first = group[0][1]
    if len(group) == 1:
        return first
    stretches = [event for _, event in group]
    sums = {}
    if isinstance(first, RamRecords):
        sums = {name: sum(getattr(event, name) for event in stretches) for name in _COUNTS}
    return dataclasses.replace(first, raw=rejoined(stretches), **sums)


def rejoined(events: Iterable[_HasRaw]) -> bytes:
    """The bytes that the events stand for."""
    return b"".join(event.raw for event in events)


@contextlib.contextmanager
def raises_at(error: type[StreamError], offset: int, expected: str = "") -> Iterator[None]:
    """``pytest.raises`` for an error of exactly this type, at this offset, whose `expected` has these words."""
    with pytest.raises(StreamError) as caught:
        yield
    assert (type(caught.value), caught.value.offset) == (error, offset), str(caught.value)
    assert expected in caught.value.expected


def _kept(event: _E) -> _E:
    """The event with its own copy of what it stands for."""
    if isinstance(getattr(event, "raw", None), memoryview):
        kept: _E = dataclasses.replace(event, raw=bytes(event.raw))  # type: ignore[type-var, attr-defined]  # bulk events are dataclasses with raw
        return kept
    return event
