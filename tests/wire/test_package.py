# SPDX-License-Identifier: GPL-2.0-or-later
"""The contents of a PACKAGED command."""

from __future__ import annotations

import pytest

from qmpfilter.errors import FramingError, LayoutError, StreamError
from qmpfilter.wire.events import CommandReceived, DeviceSection
from qmpfilter.wire.framing import Command
from qmpfilter.wire.package import package_events
from tests.helpers import build
from tests.helpers.parse import raises_at, rejoined

BASE = 7000
LISTEN = build.command(Command.POSTCOPY_LISTEN)
PING = build.command(Command.PING, b"\0\0\0\3")
RUN = build.command(Command.POSTCOPY_RUN)
TIMER = build.timer().section()
NEW = build.Vmsd("cpu/from_the_future", (build.field("x", b"\5\x7e future"),))
TSC = build.Vmsd("cpu/tsc_khz", (build.field("env.tsc_khz", bytes(8), "int64"),))
CPU = build.cpu(4, 0, NEW, build.nested_svm(), TSC)
BUS = build.opaque(9, "PCIBUS", b"\0\0\0\x03abc").section()
CONTENTS = (LISTEN, TIMER, build.cpu_common(3).section(), CPU.section(), BUS, PING, RUN)


def divided(*contents: bytes) -> list[CommandReceived | DeviceSection]:
    data = b"".join(contents)
    events = list(package_events(data, BASE))
    assert rejoined(events) == data
    return events


def kind(event: CommandReceived | DeviceSection) -> str:
    """The command, or how the section was delimited."""
    return event.command.name if isinstance(event, CommandReceived) else event.delimited_by.name


def test_postcopy() -> None:
    events = divided(*CONTENTS)
    assert tuple(event.raw for event in events) == CONTENTS
    assert [kind(event) for event in events] == [
        "POSTCOPY_LISTEN", "LAYOUT", "LAYOUT", "FOOTER", "FOOTER", "PING", "POSTCOPY_RUN",
    ]  # fmt: skip
    assert [event.offset for event in events] == [BASE + len(b"".join(CONTENTS[:count])) for count in range(7)]
    assert isinstance(events[5], CommandReceived)
    assert events[5].payload == b"\0\0\0\3"


def test_unknown_subsections_in_a_cpu() -> None:
    cpu = divided(*CONTENTS)[3]
    assert isinstance(cpu, DeviceSection)
    assert [(sub.name, sub.end - sub.start) for sub in cpu.subsections] == [
        ("cpu/from_the_future", 25 + 9),
        ("cpu/nested_state", 4164),
        ("cpu/tsc_khz", 25),
    ]
    nested = cpu.subsection("cpu/nested_state")
    assert nested is not None
    assert cpu.raw[nested.children[0].payload :].startswith(bytes.fromhex("0000000001234000 5a5a"))


def test_empty() -> None:
    assert divided() == []


#: What a guest can write into its serial port to end the section early: the rest must still be a package.
FORGED = b"text" + build.footer(8)


@pytest.mark.parametrize(
    ("before", "wrong", "error", "at", "expected"),
    [
        ((LISTEN,), build.EOF, FramingError, 0, "a command or a device section"),
        ((LISTEN,), build.part(build.EOS), FramingError, 0, "a command or a device section"),
        ((LISTEN,), b"\x06\0\0\0\2{}", FramingError, 0, "a command or a device section"),
        ((LISTEN,), build.command(12), FramingError, 0, "a command or a device section"),
        ((LISTEN,), PING[:4], FramingError, 0, "a command or a device section"),
        ((LISTEN,), PING[:-1], FramingError, 0, "a whole command"),
        ((LISTEN,), build.package(LISTEN), FramingError, 0, "a whole command"),
        ((LISTEN, TIMER), TIMER, FramingError, 0, "each device section once"),
        ((LISTEN,), TIMER[:-1], LayoutError, 0, "an end of section 'timer' 0"),
        ((LISTEN, TIMER), BUS[:-1], LayoutError, 0, "an end of section 'PCIBUS' 0"),
        ((LISTEN,), build.full(4, "cpu", bytes(1816), version=12) + PING, LayoutError, 17 + 1817, "footer 7e 00"),
        # forged endings: refused for what follows them, or for what they repeat
        ((LISTEN,), build.full(8, "serial", FORGED + b"\0rest") + PING, FramingError, 20 + 9, "a command or"),
        ((LISTEN,), build.full(8, "serial", FORGED + build.cpu_common(8, 5).section() + b"rest") + PING,
         FramingError, 20 + 9 + 1, "a section_id that no other"),
        ((LISTEN,), build.full(8, "serial", FORGED + build.cpu_common(6, 5).section() + b"rest") + PING,
         FramingError, 20 + 9 + 37, "a command or a device"),
    ],
)  # fmt: skip
def test_refused(before: tuple[bytes, ...], wrong: bytes, error: type[StreamError], at: int, expected: str) -> None:
    with raises_at(error, BASE + sum(map(len, before)) + at, expected):
        divided(*before, wrong)
