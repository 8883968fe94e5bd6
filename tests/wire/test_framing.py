# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers of the outer framing, against a second copy of the format's tables."""

from __future__ import annotations

import pytest

from qmpfilter.wire.framing import (
    COMMAND_LENGTHS,
    CPR_MAGIC,
    FOOTER_SIZE,
    MAGIC,
    MULTIFD_MAGIC,
    STREAM_VERSION,
    Command,
    Configuration,
    SectionType,
    command_name,
)

SECTION_TYPES = {
    0x00: "EOF",
    0x01: "START",
    0x02: "PART",
    0x03: "END",
    0x04: "FULL",
    0x05: "SUBSECTION",
    0x06: "VMDESCRIPTION",
    0x07: "CONFIGURATION",
    0x08: "COMMAND",
    0x7E: "FOOTER",
}

COMMANDS: list[tuple[int, str, tuple[int, ...] | None]] = [
    (1, "OPEN_RETURN_PATH", (0,)),
    (2, "PING", (4,)),
    (3, "POSTCOPY_ADVISE", (0, 16)),
    (4, "POSTCOPY_LISTEN", (0,)),
    (5, "POSTCOPY_RUN", (0,)),
    (6, "POSTCOPY_RAM_DISCARD", None),
    (7, "PACKAGED", (4,)),
    (8, "ENABLE_COLO", (0,)),
    (9, "POSTCOPY_RESUME", (0,)),
    (10, "RECV_BITMAP", None),
    (11, "SWITCHOVER_START", (0,)),
]


def test_first_bytes() -> None:
    assert int.from_bytes(MAGIC, "big") == 0x5145564D
    assert STREAM_VERSION == 3
    assert int.from_bytes(MULTIFD_MAGIC, "big") == 0x11223344
    assert int.from_bytes(CPR_MAGIC, "big") == 0x51435052


def test_section_types() -> None:
    assert {kind.value: kind.name for kind in SectionType} == SECTION_TYPES
    assert FOOTER_SIZE == 1 + 4


@pytest.mark.parametrize(("code", "name", "lengths"), COMMANDS)
def test_command(code: int, name: str, lengths: tuple[int, ...] | None) -> None:
    assert Command(code).name == command_name(code) == name
    assert COMMAND_LENGTHS[Command(code)] == lengths


def test_commands_are_all_there() -> None:
    assert list(Command) == list(COMMAND_LENGTHS) == [code for code, _, _ in COMMANDS]


def test_unknown_command_has_a_number() -> None:
    assert command_name(12) == "command 12"


def test_configuration_subsections() -> None:
    assert {part.value for part in Configuration} == {
        "configuration/target-page-bits",
        "configuration/capabilities",
        "configuration/uuid",
    }
