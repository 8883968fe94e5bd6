# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of guest-physical memory, as the human monitor's ``xp`` prints them.

QMP itself has only pmemsave, which takes longer and writes guest memory to a file. Source: QEMU 10.2.2
monitor/hmp-cmds-target.c (memory_dump): 16 bytes a line, each word of 8 bytes a number in the guest's byte order. The
address has 16 digits up to QEMU 10.0, and in 11.1 8 or as many as it needs (seen).
"""

from __future__ import annotations

import re
import struct
from typing import Final

from qmpfilter.errors import HostError

__all__ = ["PAGE", "command_for", "parse_page"]

PAGE: Final = 4096
_WORDS: Final = PAGE // 8
_LINE_BYTES: Final = 16
_MOST_ADDRESS: Final = 1 << 52
"""x86-64 knows no physical address beyond (APM volume 2, 5.1)."""
_NOTHING: Final = "Cannot access memory"
_LINE: Final = re.compile(r"([0-9a-f]{8,16}): 0x([0-9a-f]{16}) 0x([0-9a-f]{16})")


def command_for(address: int) -> str:
    """The line for the human monitor.

    :raises HostError: there is no page at this address
    """
    if address % PAGE or not 0 <= address < _MOST_ADDRESS:
        raise HostError(f"{address:#x} is not the address of a page of guest memory")
    return f"xp /{_WORDS}gx {address:#x}"


def parse_page(address: int, text: str) -> bytes:
    """The page.

    :raises HostError: the text is anything but the whole page at this address
    """
    lines = text.replace("\r", "").removesuffix("\n").split("\n")
    if len(lines) != PAGE // _LINE_BYTES:
        raise _not_the_page(address, lines[0] if len(lines) == 1 else f"{len(lines)} lines")
    words = []
    for number, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if match is None or int(match[1], 16) != address + number * _LINE_BYTES:
            raise _not_the_page(address, line)
        words += [int(match[2], 16), int(match[3], 16)]
    return struct.pack(f"<{_WORDS}Q", *words)


def _not_the_page(address: int, found: str) -> HostError:
    # What stands there may be guest memory, of which no message may tell.
    shown = _NOTHING if _NOTHING in found else found if found.endswith(" lines") else "something else"
    return HostError(f"QEMU was asked for guest memory at {address:#x} and answered: {shown}")
