# SPDX-License-Identifier: GPL-2.0-or-later
"""Generated migration streams of any size: real framing, made-up pages."""

from __future__ import annotations

from collections.abc import Iterator

from qmpfilter.wire.framing import BE32, BE64, MAGIC, STREAM_VERSION, SectionType
from qmpfilter.wire.ram import IDSTR, PAGE_SIZE, VERSION, RamFlag

__all__ = ["NO_DEVICES", "guest_ram", "ram_parts"]

_RAM_ID = 2
_BLOCK = b"pc.ram"
_BATCH = 1024
_PAGES_A_PART = 4 * _BATCH
_VMDESC = b'{"configuration": {}, "page_size": 4096, "devices": []}'
NO_DEVICES = bytes([SectionType.EOF, SectionType.VMDESCRIPTION]) + BE32.pack(len(_VMDESC)) + _VMDESC
"""The tail of a machine without any."""

_FOOTER = bytes([SectionType.FOOTER]) + BE32.pack(_RAM_ID)
_EOS = BE64.pack(RamFlag.EOS)


def guest_ram(pages: int, *, zero: bool) -> Iterator[bytes]:
    """A whole stream of a guest with `pages` pages of RAM, all ordinary or all zero, in pieces."""
    machine = b"pc-i440fx-10.0"
    total = pages * PAGE_SIZE
    yield MAGIC + BE32.pack(STREAM_VERSION)
    yield bytes([SectionType.CONFIGURATION]) + BE32.pack(len(machine)) + machine
    yield bytes([SectionType.START]) + BE32.pack(_RAM_ID) + bytes([len(IDSTR)]) + IDSTR.encode()
    yield BE32.pack(0) + BE32.pack(VERSION)
    yield BE64.pack(total | RamFlag.MEM_SIZE) + _NAME + BE64.pack(total) + _EOS + _FOOTER
    for first in range(0, pages, _PAGES_A_PART):
        yield bytes([SectionType.PART]) + BE32.pack(_RAM_ID)
        for start in range(first, min(first + _PAGES_A_PART, pages), _BATCH):
            yield _records(range(start, min(start + _BATCH, pages)), zero=zero)
        yield _EOS + _FOOTER
    yield bytes([SectionType.END]) + BE32.pack(_RAM_ID) + _EOS + _FOOTER
    yield NO_DEVICES


def ram_parts(pages: int) -> tuple[bytes, bytes, bytes]:
    """Of a stream of ordinary pages: what comes before its only PART, that PART, and the END of RAM.

    The PART may come any number of times. What follows is the tail.
    """
    *start, end, _ = guest_ram(pages, zero=False)
    first = len(start) - 2 - -(-pages // _BATCH)
    return b"".join(start[:first]), b"".join(start[first:]), end


_NAME = bytes([len(_BLOCK)]) + _BLOCK
_CONTENT = bytes(range(256)) * (PAGE_SIZE // 256)


def _records(pages: range, *, zero: bool) -> bytes:
    kind = RamFlag.ZERO if zero else RamFlag.PAGE
    content = b"\0" if zero else _CONTENT
    first = BE64.pack(kind) + _NAME + content if pages.start == 0 else b""
    flags = int(kind | RamFlag.CONTINUE)
    words = (BE64.pack(page * PAGE_SIZE | flags) for page in pages if page)
    return first + b"".join(word + content for word in words)
