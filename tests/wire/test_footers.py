# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers, footers, and what may follow a footer."""

from __future__ import annotations

import pytest

from qmpfilter.wire.footers import SectionHeader, footer, footer_candidates, next_part, section_header
from qmpfilter.wire.framing import Command, SectionType
from tests.helpers import build

TIMER = build.full(7, "timer", b"", instance_id=3, version=2)[:-5]
TIMER_HEADER = SectionHeader(7, "timer", 3, 2, size=len(TIMER))


@pytest.mark.parametrize("before", [b"", b"\x04" * 9])
def test_section_header(before: bytes) -> None:
    assert section_header(before + TIMER + b"body", len(before)) == TIMER_HEADER


@pytest.mark.parametrize("cut", range(len(TIMER)))
def test_header_needs_all_its_bytes(cut: int) -> None:
    assert section_header(TIMER[:cut], 0) is None


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (build.full(7, "", b""), "a printable section name of 1 to 255 bytes"),
        (build.full(7, "", b"")[:6], "a printable section name of 1 to 255 bytes"),
        (build.full(7, "a\tb", b""), "a printable section name of 1 to 255 bytes"),
        (build.full(7, "a\tbcdef", b"")[:8], "a printable section name of 1 to 255 bytes"),
        (build.full(7, "timer", b"", version=1001), "a version of section 'timer' up to 1000"),
    ],
)
def test_broken_header(data: bytes, wrong: str) -> None:
    assert section_header(data, 0) == wrong
    assert next_part(data, 0) is None


def test_longest_name_and_highest_version() -> None:
    header = section_header(build.full(0xFFFFFFFF, "n" * 255, b"", 0xFFFFFFFF, 1000), 0)
    assert header == SectionHeader(0xFFFFFFFF, "n" * 255, 0xFFFFFFFF, 1000, 269)


def test_footer() -> None:
    assert footer(0x01020304) == b"\x7e\1\2\3\4"


def test_footer_candidates() -> None:
    mark = footer(0x7E)  # it ends with its own first byte, so that two can overlap
    data = b"\x7e" + mark + b"x" + mark[:4] + mark
    assert list(footer_candidates(data, 0, 0x7E)) == [1, 7, 11]
    assert list(footer_candidates(data, 8, 0x7E)) == [11]
    assert list(footer_candidates(data, 12, 0x7E)) == []


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", None),
        (b"\x00", SectionType.EOF),
        (build.resumed(SectionType.PART, 2), SectionType.PART),
        (build.resumed(SectionType.END, 2), SectionType.END),
        (TIMER, TIMER_HEADER),
        (b"\x01" + TIMER[1:], TIMER_HEADER),
        (TIMER[:-1], None),
        (build.command(Command.PING, bytes(4)), Command.PING),
        (build.command(Command.PING, bytes(4))[:5], Command.PING),
        (build.command(Command.PING, bytes(4))[:4], None),
        (build.command(Command.PING, bytes(5)), None),
        (build.command(Command.POSTCOPY_ADVISE, bytes(16)), Command.POSTCOPY_ADVISE),
        (build.command(Command.POSTCOPY_ADVISE, bytes(8)), None),
        (build.command(Command.POSTCOPY_RAM_DISCARD, bytes(777)), Command.POSTCOPY_RAM_DISCARD),
        (build.command(12), None),
        (b"\x05\0\0", None),
        (b"\x06\0\0\0\0", None),
        (b"\x07\0\0\0\0", None),
        (b"\x09\0\0\0\0", None),
        (b"\x7e\0\0\0\0", None),
    ],
)
def test_next_part(data: bytes, part: object) -> None:
    assert next_part(data, 0) == part
    assert next_part(b"\x7e" + data, 1) == part
