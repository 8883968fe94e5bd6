# SPDX-License-Identifier: GPL-2.0-or-later
"""One way to read a stream, wherever it is kept: a save image, a recording, a pipe, compressed or not."""

from __future__ import annotations

import enum
from types import TracebackType
from typing import Protocol, Self

from qmpfilter.errors import BugError, TruncatedError
from qmpfilter.saveimage.decoders import DecodingReader
from qmpfilter.saveimage.header import HEADER_SIZE, MAGIC, MAGIC_PARTIAL, SaveFormat, SaveImageHeader
from qmpfilter.saveimage.identity import DomainIdentity, IdentityReader
from qmpfilter.saveimage.infile import InputFile
from qmpfilter.saveimage.lzop import LzopReader

__all__ = ["Kind", "Source", "open_source"]

# Each is the start of every file of its format: RFC 1952, bzip2's manual, the .xz file format 1.2,
# lzop's file(1) entry, RFC 8878.
_MAGICS = (
    (b"\x1f\x8b\x08", SaveFormat.GZIP),
    (b"BZh", SaveFormat.BZIP2),
    (b"\xfd7zXZ\x00", SaveFormat.XZ),
    (b"\x89LZO\x00\r\n\x1a\n", SaveFormat.LZOP),
    (b"\x28\xb5\x2f\xfd", SaveFormat.ZSTD),
)

_XML_PIECE = 64 << 10


class Kind(enum.StrEnum):
    """What the stream was found in."""

    STREAM = "migration stream"
    SAVE_IMAGE = "libvirt save image"


class _Reader(Protocol):
    def readinto(self, view: memoryview) -> int: ...

    def close(self) -> None: ...


class Source:
    """A stream to be read once, front to back; a context manager that closes it.

    :param infile: the input, at its first byte; the source closes it
    :ivar kind: what the stream was found in
    :ivar compression: how it was compressed there
    :ivar header: the save image's header, None for a bare stream
    :ivar domain: the domain that a save image names, None for a bare stream
    :ivar size: bytes of the input, None where the operating system cannot tell (a pipe)
    :raises ImageError: a damaged or incomplete save image
    :raises TruncatedError: a save image that ends before its payload
    :raises LimitError: a save image with an impossibly long XML
    :raises UnsupportedError: a sparse save image
    :raises HostError: the input cannot be read, or the program lzop is missing
    """

    def __init__(self, infile: InputFile) -> None:
        self._infile = infile
        self.size = infile.size
        self.header: SaveImageHeader | None = None
        self.domain: DomainIdentity | None = None
        head = infile.peek(HEADER_SIZE)
        if head.startswith((MAGIC, MAGIC_PARTIAL)):
            self.kind = Kind.SAVE_IMAGE
            self.header = SaveImageHeader.parse(head)
            self.compression = self.header.format
            self.domain = _read_identity(infile, self.header)
        else:
            self.kind = Kind.STREAM
            self.compression = _sniff(head)
        self._reader = _reader(infile, self.compression)

    def readinto(self, view: memoryview) -> int:
        """Put the next bytes of the decompressed stream into `view`, from its start.

        :param view: not empty; it may be filled in part only
        :returns: bytes written; 0 at the end of the stream
        :raises ImageError: compressed data is damaged; the offset is one of the decompressed stream
        :raises TruncatedError: compressed data is cut short
        :raises HostError: the input cannot be read
        :raises BugError: `view` is empty
        """
        if not view:
            raise BugError("a read into an empty buffer")
        return self._reader.readinto(view)

    def position(self) -> int:
        """Bytes of the input (not of the stream) consumed so far; comparable with `size`."""
        return self._infile.position

    def close(self) -> None:
        """Close the input and end a decompressing program; standard input itself stays open."""
        self._reader.close()
        self._infile.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_source(path: str) -> Source:
    """Open a save image, or a bare stream that may be compressed; the first bytes tell which.

    Bytes that are none of these are handed on as they are: whether they are a stream is the parser's to say.

    :param path: a path, or ``-`` for standard input
    :raises HostError: there is no such file, or it cannot be read
    :raises StreamError: as :class:`Source` says
    """
    infile = InputFile(path)
    try:
        return Source(infile)
    except BaseException:
        infile.close()
        raise


def _sniff(head: bytes) -> SaveFormat:
    for magic, format_ in _MAGICS:
        if head.startswith(magic):
            return format_
    return SaveFormat.RAW


def _reader(infile: InputFile, compression: SaveFormat) -> _Reader:
    match compression:
        case SaveFormat.RAW:
            # No object in between: the parser's buffer goes to the operating system as it is.
            return infile
        case SaveFormat.LZOP:
            return LzopReader(infile)
        case _:
            return DecodingReader(infile, compression)


def _read_identity(infile: InputFile, header: SaveImageHeader) -> DomainIdentity:
    offset = HEADER_SIZE
    piece = memoryview(bytearray(_XML_PIECE))
    _take(infile, piece[:HEADER_SIZE], 0)
    identity = IdentityReader(offset)
    while offset < header.payload_offset:
        got = _take(infile, piece[: header.payload_offset - offset], offset)
        xml_left = HEADER_SIZE + header.xml_len - offset
        if xml_left > 0:
            identity.feed(bytes(piece[: min(got, xml_left)]))
        offset += got
    return identity.finish()


def _take(infile: InputFile, view: memoryview, offset: int) -> int:
    got = infile.readinto(view)
    if got == 0:
        raise TruncatedError(offset, "the rest of the save image", "the end of the input")
    return got
