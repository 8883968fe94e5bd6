# SPDX-License-Identifier: GPL-2.0-or-later
"""The two connections of a main channel: every wait on one of them ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Final

from qmpfilter.errors import DeadlineError, UnsupportedError
from qmpfilter.relay.address import tune
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.session import Phase

__all__ = ["Line"]

# How often a wait for the other side looks at its deadline.
_TICK: Final = 1.0


class Line:
    """Bytes from and to both ends. One thread reads the source, another one the destination.

    :param phase: of the session, asked again and again
    :ivar source: the source's end
    :ivar destination: the destination's end
    :ivar forward: bytes that the destination took
    :ivar broken: why the destination takes nothing any more
    """

    def __init__(
        self, source: socket.socket, destination: socket.socket, waits: Waits, phase: Callable[[], Phase]
    ) -> None:
        self.source: Final = source
        self.destination: Final = destination
        self.forward = 0
        self.broken: OSError | None = None
        self._broke = 0.0
        self._waits = waits
        self._phase = phase
        for end in (source, destination):
            tune(end)
            end.settimeout(min(_TICK, waits.idle, waits.answer))
        self.moved()

    def moved(self) -> None:
        """What was silence until now has ended."""
        self._moved = time.monotonic()

    def read(self, end: socket.socket, buffer: memoryview) -> int:
        """What has come; 0 at the end, or when the session has ended.

        :param end: one of both
        :raises DeadlineError: nothing came, and the other side has nothing on its way either
        :raises UnsupportedError: file descriptors came from the source
        :raises OSError: the connection is gone, or the destination is and has not said why
        """
        while True:
            if end is self.destination:
                self._check_broken()
            try:
                count, _, flags, _ = end.recvmsg_into([buffer])
            except TimeoutError:
                phase = self._phase()
                if phase is Phase.ENDED:
                    return 0
                # A destination has nothing to say while it loads.
                if phase is Phase.COMMITTED or end is self.source:
                    self._check_silence(f"nothing came from {self._named(end)}")
                continue
            if flags & socket.MSG_CTRUNC and end is self.source:
                raise UnsupportedError(
                    self.forward, "bytes from the source; file descriptors cannot be relayed: migrate without CPR",
                    "file descriptors",
                )  # fmt: skip
            self.moved()
            return count

    def send(self, end: socket.socket, data: bytes | memoryview) -> bool:
        """False if that end is gone, or the migration was given up meanwhile.

        :param end: one of both
        :raises DeadlineError: it took nothing for too long
        """
        rest = memoryview(data)
        while rest:
            try:
                sent = end.send(rest)
            except TimeoutError:
                if self._phase() is Phase.ENDED:
                    return False
                self._check_silence(f"{self._named(end)} took nothing")
                continue
            except OSError as error:
                if end is self.destination:
                    self.broken, self._broke = error, time.monotonic()
                return False
            rest = rest[sent:]
            self.moved()
            if end is self.destination:
                self.forward += sent
        return True

    def _named(self, end: socket.socket) -> str:
        return "the source" if end is self.source else "the destination"

    def _check_broken(self) -> None:
        """:raises OSError: the destination takes nothing any more, and has not said why for too long"""
        limit = self._waits.linger if self._phase() is Phase.STREAMING else self._waits.answer
        if self.broken is not None and time.monotonic() - self._broke >= limit:
            raise self.broken

    def _check_silence(self, what: str) -> None:
        """:raises DeadlineError: nothing has moved for too long, either way"""
        limit = self._waits.answer if self._phase() is Phase.COMMITTED else self._waits.idle
        if time.monotonic() - self._moved >= limit:
            raise DeadlineError(f"{what} for {limit:g} s")
