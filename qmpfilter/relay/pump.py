# SPDX-License-Identifier: GPL-2.0-or-later
"""Channels that are passed on as they are: spliced, both ways, each direction ending on its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Callable
from typing import Final

from qmpfilter.relay.tls import TlsEnd

__all__ = ["Pump"]

_CHUNK: Final = 1 << 20
# What lies in a unix socket's buffer when it is full takes little more.
_LITTLE: Final = 200 << 10


class Pump:
    """Two connections joined.

    :param ended: called once, when both directions have ended, with the error that ended one of them early
    """

    def __init__(
        self, source: socket.socket, destination: socket.socket, ended: Callable[[OSError | None], None]
    ) -> None:
        self.forward = 0
        self.backward = 0
        self._ends = (source, destination)
        self._ended = ended
        self._error: OSError | None = None
        self._running = 2
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._direction, args=way, daemon=True)
            for way in ((source, destination, "forward"), (destination, source, "backward"))
        ]

    def start(self) -> None:
        """Begin to pump."""
        for thread in self._threads:
            thread.start()

    def cut(self) -> None:
        """Break both connections."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def join(self, seconds: float) -> bool:
        """Wait for both directions to end; False if they did not in time."""
        for thread in self._threads:
            thread.join(seconds)
        return not any(thread.is_alive() for thread in self._threads)

    def _direction(self, source: socket.socket, destination: socket.socket, count: str) -> None:
        try:
            with contextlib.closing(_Pipe()) as pipe:
                while moved := pipe.fill(source):
                    pipe.drain(destination, moved)
                    setattr(self, count, getattr(self, count) + moved)
                    if moved < _LITTLE:
                        # On a busy machine more comes at once after others had their turn, and each byte costs less.
                        os.sched_yield()
            if isinstance(source, TlsEnd):
                source.raise_if_cut()
            destination.shutdown(socket.SHUT_WR)
        except OSError as error:
            with self._lock:
                self._error = self._error or error
            self.cut()
        with self._lock:
            self._running -= 1
            last = not self._running
        if last:
            for end in self._ends:
                end.close()
            self._ended(self._error)


class _Pipe:
    """What splice(2) needs between two sockets."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        # An unprivileged process may have to do with less.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, _CHUNK)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def fill(self, source: socket.socket) -> int:
        """Bytes that were taken from the source; 0 at its end."""
        return os.splice(source.fileno(), self._write, _CHUNK, flags=os.SPLICE_F_MOVE)

    def drain(self, destination: socket.socket, count: int) -> None:
        """Give so many bytes to the destination."""
        while count:
            count -= os.splice(self._read, destination.fileno(), count, flags=os.SPLICE_F_MOVE)
