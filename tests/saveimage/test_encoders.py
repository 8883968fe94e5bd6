# SPDX-License-Identifier: GPL-2.0-or-later
"""What is compressed here, the programs that libvirt runs decompress."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qmpfilter.errors import HostError
from qmpfilter.saveimage import encoders
from qmpfilter.saveimage.encoders import open_encoder
from qmpfilter.saveimage.header import SaveFormat
from qmpfilter.saveimage.outfile import OutputFile
from tests.saveimage.images import COMPRESSED, STREAM, contents


def encoded(path: Path, format_: SaveFormat, data: bytes, piece: int) -> bytes:
    with OutputFile(str(path)) as output:
        output.write(b"before")
        encoder = open_encoder(output, format_)
        for start in range(0, len(data), piece):
            encoder.write(memoryview(data)[start : start + piece])
        encoder.finish()
        encoder.close()
        output.commit()
    written = path.read_bytes()
    assert written.startswith(b"before")
    return written[len(b"before") :]


@pytest.mark.parametrize("piece", [1 << 10, 1 << 20])
@pytest.mark.parametrize("format_", COMPRESSED, ids=lambda item: item.label)
def test_programs_and_our_reader_decompress_it(format_: SaveFormat, piece: int, tmp_path: Path) -> None:
    data = encoded(tmp_path / "out", format_, STREAM, piece)
    assert len(data) < len(STREAM)
    done = subprocess.run([format_.label, "-dc"], input=data, stdout=subprocess.PIPE, check=True, timeout=60)
    assert done.stdout == STREAM
    assert contents(tmp_path, data) == STREAM


def test_raw_is_as_it_is(tmp_path: Path) -> None:
    # More than is gathered for one write.
    data = STREAM * 3
    assert encoded(tmp_path / "out", SaveFormat.RAW, data, 1000) == data


@pytest.mark.parametrize("format_", COMPRESSED, ids=lambda item: item.label)
def test_damage_is_noticed_by_a_checksum(format_: SaveFormat, tmp_path: Path) -> None:
    # Stored as it is by every format, so that only a checksum can tell.
    data = bytearray(encoded(tmp_path / "out", format_, b"QEVM" + bytes(range(256)), 1000))
    at = data.find(b"\x10\x11\x12\x13")
    data[at if at >= 0 else len(data) // 2] ^= 1
    assert subprocess.run([format_.label, "-dc"], input=bytes(data), capture_output=True, timeout=60).returncode


def test_a_program_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_LZOP", ("sh", "-c", "echo no room >&2; exit 7"))
    with OutputFile(str(tmp_path / "out")) as output:
        encoder = open_encoder(output, SaveFormat.LZOP)
        with pytest.raises(HostError, match="status 7: no room"):
            write_all(encoder)
        encoder.close()
    assert not list(tmp_path.iterdir())


def write_all(encoder: encoders.Encoder) -> None:
    for _ in range(100):
        encoder.write(STREAM)
    encoder.finish()


def test_a_program_is_ended_when_the_rest_fails(tmp_path: Path) -> None:
    with OutputFile(str(tmp_path / "out")) as output:
        encoder = open_encoder(output, SaveFormat.LZOP)
        encoder.write(STREAM)
        encoder.close()
    assert not list(tmp_path.iterdir())
