# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands before a stream is kept byte for byte, and no more than that."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpfilter.errors import TruncatedError
from qmpfilter.saveimage.header import ByteOrder, SaveFormat
from qmpfilter.saveimage.prefix import open_with_prefix
from tests.saveimage.images import COMPRESSED, STREAM, compress, drain, image, write


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("format_", [SaveFormat.RAW, *COMPRESSED], ids=lambda item: item.label)
def test_header_xml_cookie_and_padding(format_: SaveFormat, byteorder: ByteOrder, tmp_path: Path) -> None:
    payload = compress(STREAM, format_)
    whole = image(payload, format_, cookie=b"<cookie/>", byteorder=byteorder)
    source, prefix = open_with_prefix(write(tmp_path, whole))
    with source:
        assert prefix + payload == whole
        assert drain(source) == STREAM


@pytest.mark.parametrize("format_", [SaveFormat.RAW, *COMPRESSED], ids=lambda item: item.label)
def test_a_bare_stream_has_none(format_: SaveFormat, tmp_path: Path) -> None:
    source, prefix = open_with_prefix(write(tmp_path, compress(STREAM, format_)))
    with source:
        assert prefix == b""
        assert drain(source) == STREAM


def test_a_short_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TruncatedError):
        open_with_prefix(write(tmp_path, image(b"")[:-1]))
