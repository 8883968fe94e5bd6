# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers and footers of sections, and whether what follows a footer confirms it.

Source: QEMU 10.2.2 migration/savevm.c:1004-1032 (writers), 2559-2640 (checks of the loader).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qmpfilter.value_class import value_class
from qmpfilter.wire.framing import BE32, COMMAND_HEADER, COMMAND_LENGTHS, Command, SectionType
from qmpfilter.wire.names import is_name

__all__ = ["SectionHeader", "footer", "footer_candidates", "is_incomplete", "next_part", "section_header"]

_MAX_VERSION: Final = 1000


@value_class
class SectionHeader:
    """The header of a START or FULL section; `size` bytes from its type byte to its body."""

    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    size: int


def section_header(data: bytes | bytearray, at: int) -> SectionHeader | str | None:
    """Decode the header of a section at `data[at]`, its type byte.

    :returns: the header, or what is wrong with it in words, or None if more bytes are needed
    """
    if len(data) < at + 6:
        return None
    end = at + 6 + data[at + 5]
    name = bytes(data[at + 6 : end])
    if data[at + 5] == 0 or (name and not is_name(name)):
        return "a printable section name of 1 to 255 bytes"
    if len(data) < end + 8:
        return None
    instance_id, version_id = BE32.unpack_from(data, end)[0], BE32.unpack_from(data, end + 4)[0]
    if version_id > _MAX_VERSION:
        return f"a version of section {name.decode()!r} up to {_MAX_VERSION}"
    return SectionHeader(BE32.unpack_from(data, at + 1)[0], name.decode(), instance_id, version_id, end + 8 - at)


def footer(section_id: int) -> bytes:
    """The footer that closes a section."""
    return bytes([SectionType.FOOTER]) + BE32.pack(section_id)


def footer_candidates(data: bytes | bytearray, start: int, section_id: int) -> Iterator[int]:
    """Offsets from `start` on at which the footer's bytes stand, in ascending order."""
    pattern = footer(section_id)
    at = data.find(pattern, start)
    while at >= 0:
        yield at
        at = data.find(pattern, at + 1)


def is_incomplete(data: bytes | bytearray, at: int) -> bool:
    """True where the bytes at `data[at]` end inside what could still become a part's header."""
    if at >= len(data):
        return True
    if data[at] in (SectionType.START, SectionType.FULL):
        return section_header(data, at) is None
    return data[at] == SectionType.COMMAND and len(data) < at + 5


def next_part(data: bytes | bytearray, at: int) -> SectionHeader | Command | SectionType | None:
    """What stands at `data[at]`, if it can follow a footer and all of its header is there: the header of a START
    or FULL section, a command of legal length, or the type of another part; else None.

    Nothing but its type byte speaks for EOF, PART and END.
    """
    if at >= len(data):
        return None
    kind = data[at]
    if kind in (SectionType.START, SectionType.FULL):
        header = section_header(data, at)
        return header if isinstance(header, SectionHeader) else None
    if kind == SectionType.COMMAND and len(data) >= at + 5:
        code, length = COMMAND_HEADER.unpack_from(data, at + 1)
        if code in COMMAND_LENGTHS:
            allowed = COMMAND_LENGTHS[Command(code)]
            return Command(code) if allowed is None or length in allowed else None
        return None
    if kind in (SectionType.EOF, SectionType.PART, SectionType.END):
        return SectionType(kind)
    return None
