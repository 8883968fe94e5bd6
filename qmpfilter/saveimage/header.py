# SPDX-License-Identifier: GPL-2.0-or-later
"""The header of a libvirt save image.

A save image is this header, then `data_len` bytes of XML (the domain, NUL-terminated; from `cookieOffset`
on libvirt's cookie; zeros up to the end, so that the XML can be edited in place), then the payload: a QEMU
migration stream, compressed as `format` says.

Source: libvirt 11.3, src/qemu/qemu_saveimage.h, ``struct _virQEMUSaveHeader``, and qemu_saveimage.c,
``qemuSaveImageReadHeader``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import construct

from qmpfilter.errors import ImageError, LimitError, TruncatedError, UnsupportedError
from qmpfilter.layout import Field, Layout

__all__ = [
    "HEADER",
    "HEADER_SIZE",
    "MAGIC",
    "MAGIC_PARTIAL",
    "MAX_DATA_LEN",
    "VERSION",
    "ByteOrder",
    "SaveFormat",
    "SaveImageHeader",
]

MAGIC = b"LibvirtQemudSave"
MAGIC_PARTIAL = b"LibvirtQemudPart"
VERSION = 2

#: Bytes of XML and padding that are accepted; libvirt itself writes the XML and 64 KiB more.
MAX_DATA_LEN = 64 << 20

_UNUSED_WORDS = 14

ByteOrder = Literal["little", "big"]


class SaveFormat(enum.IntEnum):
    """How the payload is compressed. Source: libvirt, ``virQEMUSaveFormat``."""

    RAW = 0
    GZIP = 1
    BZIP2 = 2
    XZ = 3
    LZOP = 4
    ZSTD = 5
    SPARSE = 6

    @property
    def label(self) -> str:
        """libvirt's own word for it, as in ``save_image_format`` of qemu.conf."""
        return self.name.lower()


def _layout(word: construct.Construct[Any, Any]) -> Layout:
    return Layout(
        "virQEMUSaveHeader",
        "libvirt 11.3 src/qemu/qemu_saveimage.h",
        [
            Field(0x00, "magic", construct.Bytes(16), "LibvirtQemudSave; LibvirtQemudPart until all is written"),
            Field(0x10, "version", word, "2; tells the byte order too: that of the host that saved"),
            Field(0x14, "data_len", word, "bytes of XML, cookie and padding that follow the header"),
            Field(0x18, "was_running", word, "1: the domain ran when it was saved, 0: it was paused"),
            Field(0x1C, "format", word, "see SaveFormat"),
            Field(0x20, "cookieOffset", word, "bytes from the XML's start to the cookie, 0: there is none"),
            Field(0x24, "unused", construct.Array(_UNUSED_WORDS, word), "zeros"),
        ],
    )


#: The layout in either byte order.
HEADER: Mapping[ByteOrder, Layout] = {
    "little": _layout(construct.Int32ul),
    "big": _layout(construct.Int32ub),
}

#: Bytes of the header, 92.
HEADER_SIZE = HEADER["little"].size


@dataclass(frozen=True, slots=True)
class SaveImageHeader:
    """The header's meaning.

    :param data_len: bytes between the header and the payload
    :param was_running: the domain ran when it was saved
    :param format: compression of the payload
    :param cookie_offset: bytes from the start of the XML to libvirt's cookie; 0 when there is none
    :param byteorder: byte order of the host that wrote the image
    """

    data_len: int
    was_running: bool
    format: SaveFormat
    cookie_offset: int = 0
    byteorder: ByteOrder = "little"

    @property
    def xml_len(self) -> int:
        """Bytes of the domain XML with its NUL (and with the padding, when no cookie follows)."""
        return self.cookie_offset or self.data_len

    @property
    def payload_offset(self) -> int:
        """Bytes from the start of the image to the payload."""
        return HEADER_SIZE + self.data_len

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the header at the start of `data`, in the byte order that its version shows.

        :raises TruncatedError: fewer than 92 bytes
        :raises ImageError: not a save image, an incomplete one, or fields that contradict each other
        :raises LimitError: `data_len` exceeds :data:`MAX_DATA_LEN`
        :raises UnsupportedError: a sparse image, whose payload is no sequential stream
        """
        if len(data) < HEADER_SIZE:
            raise TruncatedError(len(data), f"{HEADER_SIZE} bytes of save image header", "the end of the input")
        byteorder = _byteorder(data)
        layout = HEADER[byteorder]
        data_len = layout.get(data, "data_len")
        cookie_offset = layout.get(data, "cookieOffset")
        if data_len == 0:
            raise ImageError(layout.offset("data_len"), "the length of the domain XML", "0")
        if data_len > MAX_DATA_LEN:
            raise LimitError(layout.offset("data_len"), f"at most {MAX_DATA_LEN} bytes of domain XML", str(data_len))
        if cookie_offset > data_len:
            raise ImageError(layout.offset("cookieOffset"), f"a cookie within {data_len} bytes", str(cookie_offset))
        return cls(
            data_len=data_len,
            was_running=layout.get(data, "was_running") != 0,
            format=_format(layout, data),
            cookie_offset=cookie_offset,
            byteorder=byteorder,
        )

    def build(self) -> bytes:
        """The 92 bytes of the header of a complete image.

        :raises construct.ConstructError: a number does not fit its field
        """
        return HEADER[self.byteorder].build(
            {
                "magic": MAGIC,
                "version": VERSION,
                "data_len": self.data_len,
                "was_running": int(self.was_running),
                "format": int(self.format),
                "cookieOffset": self.cookie_offset,
                "unused": [0] * _UNUSED_WORDS,
            }
        )


def _byteorder(data: bytes) -> ByteOrder:
    layout = HEADER["little"]
    magic = data[layout.span("magic")]
    if magic == MAGIC_PARTIAL:
        raise ImageError(
            layout.offset("magic"), "a complete save image", f"{magic.decode()}: the save did not finish"
        )
    if magic != MAGIC:
        raise ImageError(layout.offset("magic"), MAGIC.decode(), magic)
    for byteorder, candidate in HEADER.items():
        if candidate.get(data, "version") == VERSION:
            return byteorder
    raise ImageError(layout.offset("version"), f"save image version {VERSION}", data[layout.span("version")])


def _format(layout: Layout, data: bytes) -> SaveFormat:
    offset = layout.offset("format")
    number = layout.get(data, "format")
    try:
        format_ = SaveFormat(number)
    except ValueError:
        raise ImageError(offset, f"a save format from 0 to {max(SaveFormat)}", str(number)) from None
    if format_ is SaveFormat.SPARSE:
        raise UnsupportedError(
            offset,
            "a sequential stream (restore the domain and save it with `virsh save --image-format raw`)",
            f"format {number}, sparse (mapped-ram)",
        )
    return format_
