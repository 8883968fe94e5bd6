# SPDX-License-Identifier: GPL-2.0-or-later
"""Decompression in bounded memory: gzip, bzip2, xz and zstd.

No call yields more than the caller's buffer holds, however much the input would expand to.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import Protocol

from qmpfilter.errors import ImageError, TruncatedError
from qmpfilter.saveimage import zstandard
from qmpfilter.saveimage.header import SaveFormat
from qmpfilter.saveimage.infile import InputFile

__all__ = ["DECOMPRESSORS", "DecodingReader"]

_CHUNK = 128 << 10

# What `xz -9` asks for is 65 MiB.
_XZ_MEMORY = 256 << 20

_FAILURES: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, *zstandard.ERRORS, OSError, EOFError)


class Decompressor(Protocol):
    """One compressed member: the interface that the standard library's decompressors share."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes: ...


class _Gzip:
    """:func:`zlib.decompressobj` with the interface of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        output = self._zlib.decompress(self._zlib.unconsumed_tail or data, max_length)
        # Output that fills the limit may leave more behind inside zlib, although all input is consumed.
        self.needs_input = not self._zlib.unconsumed_tail and len(output) < max_length
        return output


def _xz() -> Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


DECOMPRESSORS: Mapping[SaveFormat, Callable[[], Decompressor]] = {
    SaveFormat.GZIP: _Gzip,
    SaveFormat.BZIP2: bz2.BZ2Decompressor,
    SaveFormat.XZ: _xz,
    SaveFormat.ZSTD: zstandard.decompressor,
}


class DecodingReader:
    """Decompresses the rest of an input, member after member; zeros between and after members are padding.

    :param infile: stands at the first compressed byte
    :param format: one of :data:`DECOMPRESSORS`
    """

    def __init__(self, infile: InputFile, format: SaveFormat) -> None:
        self._infile = infile
        self._format = format
        self._decompressor = DECOMPRESSORS[format]()
        self._chunk = memoryview(bytearray(_CHUNK))
        self._offset = 0

    def readinto(self, view: memoryview) -> int:
        """Decompress into `view`, from its start.

        :returns: bytes written; 0 at the end of the stream
        :raises ImageError: the data is damaged; the offset is one of the decompressed stream
        :raises TruncatedError: the data is cut short
        :raises HostError: the input cannot be read
        """
        while True:
            data: bytes | memoryview = b""
            if self._decompressor.eof:
                data = self._next_member()
                if not data:
                    return 0
                self._decompressor = DECOMPRESSORS[self._format]()
            elif self._decompressor.needs_input:
                data = self._refill()
                if not data:
                    raise TruncatedError(self._offset, f"more {self._format.label} data", "the end of the input")
            if output := self._decompress(data, len(view)):
                view[: len(output)] = output
                self._offset += len(output)
                return len(output)

    def close(self) -> None:
        """Nothing is held beyond memory."""

    def _decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        try:
            return self._decompressor.decompress(data, max_length)
        except _FAILURES as error:
            label = self._format.label
            raise ImageError(self._offset, f"intact {label} data", f"damage: {error}") from error

    def _next_member(self) -> bytes:
        data = self._decompressor.unused_data.lstrip(b"\0")
        while not data and (chunk := self._refill()):
            data = bytes(chunk).lstrip(b"\0")
        return data

    def _refill(self) -> memoryview:
        return self._chunk[: self._infile.readinto(self._chunk)]
