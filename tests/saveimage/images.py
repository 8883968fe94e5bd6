# SPDX-License-Identifier: GPL-2.0-or-later
"""Save images and compressed recordings for the tests, compressed by the programs that libvirt runs."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from qmpfilter.saveimage.header import ByteOrder, SaveFormat, SaveImageHeader
from qmpfilter.saveimage.source import Source, open_source

NAME = "nested"
UUID = "6d0d7e7e-22f2-4f5d-9c43-0d6f1f5c2a11"
SECRET = "correct-horse-battery-staple"
XML = (
    f"<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
    f"  <name>{NAME}</name>\n  <uuid>{UUID}</uuid>\n"
    f"  <metadata><name>another</name></metadata>\n"
    f"  <devices><graphics type='vnc' passwd='{SECRET}'/></devices>\n</domain>\n"
).encode()
PADDING = 64 << 10

# Neither too dull nor too random, and longer than any buffer for reading, also when compressed.
STREAM = b"QEVM\0\0\0\3" + b"".join(b"%d %d " % (i, i * i * i) for i in range(30_000))

COMPRESSED = [format_ for format_ in SaveFormat if format_ not in (SaveFormat.RAW, SaveFormat.SPARSE)]


@functools.cache
def compress(data: bytes, format_: SaveFormat) -> bytes:
    if format_ is SaveFormat.RAW:
        return data
    return subprocess.run([format_.label, "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


def image(
    payload: bytes,
    format_: SaveFormat = SaveFormat.RAW,
    *,
    xml: bytes = XML,
    cookie: bytes = b"",
    byteorder: ByteOrder = "little",
) -> bytes:
    """A save image as libvirt writes it, around an already compressed payload."""
    data = xml + b"\0" + cookie + bytes(PADDING)
    header = SaveImageHeader(
        data_len=len(data),
        was_running=True,
        format=format_,
        cookie_offset=len(xml) + 1 if cookie else 0,
        byteorder=byteorder,
    )
    return header.build() + data + payload


def drain(source: Source, size: int = 1 << 16) -> bytes:
    buffer = memoryview(bytearray(size))
    pieces = bytearray()
    while got := source.readinto(buffer):
        pieces += buffer[:got]
    return bytes(pieces)


def write(directory: Path, data: bytes) -> str:
    path = directory / "input"
    path.write_bytes(data)
    return str(path)


def contents(directory: Path, data: bytes, size: int = 1 << 16) -> bytes:
    """What a source makes of a file with these bytes."""
    with open_source(write(directory, data)) as source:
        return drain(source, size)
