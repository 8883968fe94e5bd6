# SPDX-License-Identifier: GPL-2.0-or-later
"""The 92 bytes before the XML."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpfilter.errors import ImageError, LimitError, StreamError, TruncatedError, UnsupportedError
from qmpfilter.saveimage.header import (
    HEADER_SIZE,
    MAGIC_PARTIAL,
    MAX_DATA_LEN,
    ByteOrder,
    SaveFormat,
    SaveImageHeader,
)

READABLE = [format_ for format_ in SaveFormat if format_ is not SaveFormat.SPARSE]


@st.composite
def headers(draw: st.DrawFn) -> SaveImageHeader:
    data_len = draw(st.integers(1, MAX_DATA_LEN))
    return SaveImageHeader(
        data_len=data_len,
        was_running=draw(st.booleans()),
        format=draw(st.sampled_from(READABLE)),
        cookie_offset=draw(st.integers(0, data_len)),
        byteorder=draw(st.sampled_from(("little", "big"))),
    )


def words(*numbers: int, byteorder: str = "<") -> bytes:
    return b"LibvirtQemudSave" + struct.pack(f"{byteorder}19I", *numbers, *[0] * (19 - len(numbers)))


@given(headers())
def test_round_trip(header: SaveImageHeader) -> None:
    built = header.build()
    assert len(built) == HEADER_SIZE == 92
    assert SaveImageHeader.parse(built) == header


@pytest.mark.parametrize(("order", "byteorder"), [("<", "little"), (">", "big")])
def test_fields_stand_where_libvirt_puts_them(order: str, byteorder: ByteOrder) -> None:
    header = SaveImageHeader.parse(words(2, 0x11000, 1, 5, 0x800, byteorder=order) + b"<domain")
    assert header == SaveImageHeader(0x11000, True, SaveFormat.ZSTD, 0x800, byteorder)
    assert header.xml_len == 0x800
    assert header.payload_offset == 92 + 0x11000
    assert header.build() == words(2, 0x11000, 1, 5, 0x800, byteorder=order)


def test_format_numbers_are_libvirts() -> None:
    labels = [format_.label for format_ in SaveFormat]
    assert labels == ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"]
    assert list(SaveFormat) == list(range(7))


def test_without_cookie_the_xml_takes_all() -> None:
    assert SaveImageHeader.parse(words(2, 0x11000)).xml_len == 0x11000


@pytest.mark.parametrize(
    ("data", "error", "offset", "message"),
    [
        (words(2, 100)[:91], TruncatedError, 91, "92 bytes"),
        (b"QEVM" + bytes(88), ImageError, 0, "LibvirtQemudSave"),
        (MAGIC_PARTIAL + words(2, 100)[16:], ImageError, 0, "did not finish"),
        (words(1, 100), ImageError, 0x10, "version 2"),
        (words(3, 100), ImageError, 0x10, "03 00 00 00"),
        (words(2, 0), ImageError, 0x14, "found 0"),
        (words(2, MAX_DATA_LEN + 1), LimitError, 0x14, str(MAX_DATA_LEN)),
        (words(2, 100, 1, 7), ImageError, 0x1C, "found 7"),
        (words(2, 100, 1, 6), UnsupportedError, 0x1C, "--image-format raw"),
        (words(2, 100, 1, 0, 101), ImageError, 0x20, "found 101"),
    ],
)
def test_refusals(data: bytes, error: type[StreamError], offset: int, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        SaveImageHeader.parse(data)
    assert type(caught.value) is error
    assert caught.value.offset == offset


@given(headers(), st.lists(st.tuples(st.integers(0, HEADER_SIZE - 1), st.integers(0, 255)), max_size=8))
def test_mutations_give_typed_errors_only(header: SaveImageHeader, changes: list[tuple[int, int]]) -> None:
    data = bytearray(header.build())
    for offset, value in changes:
        data[offset] = value
    with contextlib.suppress(StreamError):
        parsed = SaveImageHeader.parse(bytes(data))
        assert SaveImageHeader.parse(parsed.build()) == parsed
