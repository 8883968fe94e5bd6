# SPDX-License-Identifier: GPL-2.0-or-later
"""A file or pipe that is read once, front to back, without a buffer in between."""

from __future__ import annotations

import io
import os
import select
import stat

from qmpfilter.errors import HostError

__all__ = ["InputFile"]

_STDIN = 0


class InputFile:
    """Reads straight into the caller's memory; only what was peeked at is copied.

    :param path: a path, or ``-`` for standard input
    :raises HostError: it cannot be opened, or it is a directory or a terminal
    """

    def __init__(self, path: str) -> None:
        self.name = "standard input" if path == "-" else path
        try:
            self._file = io.FileIO(_STDIN, closefd=False) if path == "-" else io.FileIO(path)
        except (OSError, ValueError) as error:
            raise self._host_error(error) from error
        if self._file.isatty():
            self._file.close()
            raise HostError(f"{self.name}: a terminal, not a recorded stream or a save image")
        self._head = memoryview(b"")
        self._read = 0
        self.size = self._regular_size()

    @property
    def position(self) -> int:
        """Bytes handed out so far."""
        return self._read - len(self._head)

    def peek(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end of the input; a later read returns them again.

        :raises HostError: the read failed
        """
        head = bytearray(count)
        filled = 0
        while filled < count and (got := self.readinto(memoryview(head)[filled:])):
            filled += got
        self._head = memoryview(bytes(head[:filled]))
        return bytes(self._head)

    def readinto(self, view: memoryview) -> int:
        """Fill `view` from its start with what one read of the operating system gives.

        :returns: bytes read; 0 at the end of the input
        :raises HostError: the read failed
        """
        if self._head:
            count = min(len(view), len(self._head))
            view[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        try:
            # A shared descriptor, as standard input often is, may have been made non-blocking by another.
            while (got := self._file.readinto(view)) is None:
                select.select([self._file], [], [])
        except OSError as error:
            raise self._host_error(error) from error
        self._read += got
        return got

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._file.close()

    def _regular_size(self) -> int | None:
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return None
        return max(0, status.st_size - self._file.tell())

    def _host_error(self, error: OSError | ValueError) -> HostError:
        reason = error.strerror if isinstance(error, OSError) else None
        return HostError(f"{self.name}: {reason or error}")
