# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for connections, until somebody else says that there is more to see to."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Sequence
from typing import Final

__all__ = ["Door"]

_KNOCKS: Final = 4096


class Door:
    """One thread waits; any thread, or a signal handler, wakes it. Close it at the end."""

    def __init__(self) -> None:
        self._wake, self._waker = socket.socketpair()

    def wake(self) -> None:
        """End the wait, or the next one."""
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def close(self) -> None:
        """Nobody waits any more."""
        self._wake.close()
        self._waker.close()

    def ready(self, ends: Sequence[socket.socket], seconds: float) -> socket.socket | None:
        """One that can be read, None when woken or when the time is over."""
        with selectors.DefaultSelector() as selector:
            for end in (*ends, self._wake):
                selector.register(end, selectors.EVENT_READ)
            for key, _ in selector.select(seconds):
                if key.fileobj is self._wake:
                    self._wake.recv(_KNOCKS)
                    return None
                assert isinstance(key.fileobj, socket.socket)
                return key.fileobj
        return None

    def accept(self, listeners: Sequence[socket.socket], seconds: float) -> socket.socket | None:
        """The next connection, None when woken or when the time is over."""
        ready = self.ready(listeners, seconds)
        if ready is None:
            return None
        # Somebody else may have taken it, or who connected may be gone again.
        ready.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            return ready.accept()[0]
        return None
