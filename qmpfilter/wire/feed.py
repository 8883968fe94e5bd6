# SPDX-License-Identifier: GPL-2.0-or-later
"""The parser's input: what was fed and not yet consumed, without copying what streams through.

The bulk of a stream is consumed straight out of the buffer that the caller gave. Only a header
that straddles two buffers, and what is accumulated for a section, is copied.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Generic, TypeVar

from qmpfilter.errors import BugError, QmpfilterError, StreamError, TruncatedError

__all__ = ["NEED_DATA", "Feed", "Incremental", "NeedData", "Steps"]


class NeedData:
    """Type of the sentinel NEED_DATA."""

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA: Final = NeedData()

_E = TypeVar("_E")
_R = TypeVar("_R")

# A step of the parser: yields events, or NEED_DATA to be resumed after the next feed; returns a result.
Steps = Generator[_E | NeedData, None, _R]


class Feed:
    """Unconsumed input and the position in the stream.

    :param offset: stream offset of the first byte that will be fed
    """

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.closed = False
        self.view = memoryview(b"")
        self.position = 0
        self._carry = bytearray()

    def give(self, data: bytes | bytearray | memoryview) -> None:
        """Offer the next bytes of the stream.

        :raises BugError: the bytes before are not consumed yet, or the input was closed
        """
        if self.closed or self.position < len(self.view):
            raise BugError("input offered after its end or before next_event() returned NEED_DATA")
        self.view = memoryview(data).cast("B")
        self.position = 0

    def close(self) -> None:
        """No more bytes will come."""
        self.closed = True

    @property
    def available(self) -> int:
        """Bytes that can be consumed without being fed."""
        return len(self._carry) + len(self.view) - self.position

    def straddles(self) -> bool:
        """True while bytes of a header that began in an earlier buffer are waiting for its rest."""
        return bool(self._carry)

    def advance(self, count: int) -> memoryview:
        """Consume `count` bytes of the current buffer and return them uncopied."""
        start = self.position
        self.position = start + count
        self.offset += count
        return self.view[start : self.position]

    def take(self, count: int, what: str) -> Steps[_E, bytes]:
        """Consume exactly `count` bytes, waiting for them.

        :param what: what they are, for the error
        :raises TruncatedError: the input ends before
        """
        if not self._carry and len(self.view) - self.position >= count:
            return bytes(self.advance(count))
        yield from self._fill(count, what)
        with memoryview(self._carry) as carry:
            taken = bytes(carry[:count])
        del self._carry[:count]
        self.offset += count
        return taken

    def peek(self, count: int, what: str) -> Steps[_E, bytes]:
        """The next `count` bytes without consuming them, waiting for them.

        :raises TruncatedError: the input ends before
        """
        if not self._carry and len(self.view) - self.position >= count:
            return bytes(self.view[self.position : self.position + count])
        yield from self._fill(count, what)
        return bytes(self._carry[:count])

    def take_available(self, limit: int) -> Steps[_E, bytes | memoryview]:
        """Consume between 1 and `limit` bytes, whatever is there; wait if nothing is; empty at the end of input."""
        while not self.available:
            if self.closed:
                return b""
            yield NEED_DATA
        if self._carry:
            taken = bytes(self._carry[:limit])
            del self._carry[: len(taken)]
            self.offset += len(taken)
            return taken
        return self.advance(min(limit, len(self.view) - self.position))

    def take_part(self, remaining: int, what: str) -> Steps[_E, bytes | memoryview]:
        """Consume between 1 and `remaining` bytes, whatever is there, of something that is that long.

        :param what: what it is, for the error
        :raises TruncatedError: the input ends before
        """
        offset = self.offset
        part = yield from self.take_available(remaining)
        if not part:
            raise TruncatedError(offset, f"{remaining} more bytes of {what}", "the end of input")
        return part

    def unread(self, data: bytes) -> None:
        """Give back the last bytes consumed; they are the next to be consumed again."""
        self._carry[:0] = data
        self.offset -= len(data)

    def _fill(self, count: int, what: str) -> Steps[_E, None]:
        """Move bytes from the buffer until the carry holds `count`."""
        while len(self._carry) < count:
            if self.position < len(self.view):
                missing = count - len(self._carry)
                self._carry += self.view[self.position : self.position + missing]
                self.position = min(self.position + missing, len(self.view))
            elif self.closed:
                rest = bytes(self._carry)
                found = f"the end of input after {len(rest)} of them" if rest else "the end of input"
                raise TruncatedError(self.offset, f"{count} bytes of {what}", found)
            else:
                yield NEED_DATA


class Incremental(Generic[_E]):
    """An incremental parser: takes bytes in any division, tells events. Errors are final.

    A parser writes its grammar as :meth:`_grammar`, which never returns.
    """

    def __init__(self) -> None:
        self._feed = Feed()
        self._error: QmpfilterError | None = None
        self._machine = self._grammar()

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes. They must stay unchanged until `next_event` returned NEED_DATA, and as long as a
        bulk event's `raw` is in use.

        :raises BugError: `next_event` has not returned NEED_DATA since the call before
        """
        self._feed.give(data)

    def receive_eof(self) -> None:
        """The input has ended; `next_event` then tells what was held, or that the end came too early."""
        self._feed.close()

    def next_event(self) -> _E | NeedData:
        """The next event, or NEED_DATA.

        :raises StreamError: the bytes are damaged, cut or of an unsupported kind; the same error is raised
            again by every later call
        """
        if self._error is not None:
            raise self._error
        try:
            return next(self._machine)
        except StopIteration:
            raise BugError(f"{self!r} ended") from None
        except StreamError as error:
            self._error = error
            raise

    def _grammar(self) -> Steps[_E, None]:
        raise NotImplementedError
