# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads an input and keeps what stands before the stream in it: a save image's header, XML and cookie.

They may hold passwords, so they are handed on as bytes only, never parsed here or shown.
"""

from __future__ import annotations

from qmpfilter.saveimage.infile import InputFile
from qmpfilter.saveimage.source import Source

__all__ = ["KeptPrefix", "open_with_prefix"]


class KeptPrefix(InputFile):
    """An input that remembers its first bytes until they are taken."""

    def __init__(self, path: str) -> None:
        self._kept: bytearray | None = bytearray()
        super().__init__(path)

    def readinto(self, view: memoryview) -> int:
        """As :meth:`InputFile.readinto`."""
        at = self.position
        got = super().readinto(view)
        if self._kept is not None:
            # Bytes that were peeked at are read again, at the same place.
            self._kept[at : at + got] = view[:got]
        return got

    def take(self, count: int) -> bytes:
        """The first `count` bytes of the input, which were read; from here on nothing is kept."""
        kept, self._kept = bytes(self._kept or b"")[:count], None
        return kept


def open_with_prefix(path: str) -> tuple[Source, bytes]:
    """Open a source, and get what stands before its stream: nothing in a bare recording.

    :param path: a path, or ``-`` for standard input
    :raises HostError: there is no such file, or it cannot be read
    :raises StreamError: as :class:`Source` says
    """
    infile = KeptPrefix(path)
    try:
        source = Source(infile)
    except BaseException:
        infile.close()
        raise
    return source, infile.take(source.header.payload_offset if source.header else 0)
