# SPDX-License-Identifier: GPL-2.0-or-later
"""What the human monitor prints of guest memory."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from qmpfilter.errors import HostError
from qmpfilter.qmp.pages import PAGE, command_for, parse_page

ADDRESS = 0x1234000
LINES = [f"{ADDRESS + 16 * n:016x}: 0x{2 * n:016x} 0x{2 * n + 1:016x}" for n in range(256)]


def test_a_page() -> None:
    assert command_for(ADDRESS) == "xp /512gx 0x1234000"
    page = parse_page(ADDRESS, "".join(f"{line}\r\n" for line in LINES))
    assert len(page) == PAGE
    assert struct.unpack("<512Q", page) == tuple(range(512))
    assert parse_page(ADDRESS, "\n".join(LINES)) == page


@pytest.mark.parametrize("address", [ADDRESS, 0x1_0000_0000, (1 << 52) - PAGE])
def test_a_page_of_a_newer_qemu(address: int) -> None:
    lines = [f"{address + 16 * n:08x}: 0x{2 * n:016x} 0x{2 * n + 1:016x}\r\n" for n in range(256)]
    assert struct.unpack("<512Q", parse_page(address, "".join(lines))) == tuple(range(512))


@pytest.mark.parametrize("address", [1, 0xFFF, ADDRESS + 8, -PAGE, 1 << 52])
def test_no_page(address: int) -> None:
    with pytest.raises(HostError, match="is not the address of a page"):
        command_for(address)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: lines[:-1], "255 lines"),
        (lambda lines: [*lines, lines[-1]], "257 lines"),
        (lambda lines: [], "something else"),
        (lambda lines: [f"{ADDRESS:016x}: Cannot access memory"], "Cannot access memory"),
        (lambda lines: [*lines[:-1], f"{ADDRESS + 4080:016x}: Cannot access memory"], "Cannot access memory"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "something else"),
        (lambda lines: [lines[0][:-1], *lines[1:]], "something else"),
        (lambda lines: [lines[0] + " 0x0000000000000000", *lines[1:]], "something else"),
        (lambda lines: [lines[0].replace("0x", "0X"), *lines[1:]], "something else"),
        (lambda lines: ["unknown command: 'xp'"], "something else"),
    ],
)
def test_anything_else(damage: Callable[[list[str]], list[str]], said: str) -> None:
    with pytest.raises(HostError, match=f"^QEMU was asked for guest memory at 0x1234000 and answered: {said}$"):
        parse_page(ADDRESS, "".join(f"{line}\r\n" for line in damage(LINES)))
