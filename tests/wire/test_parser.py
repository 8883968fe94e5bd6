# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole streams: what is told of them, in whatever pieces they come, and what is refused."""

from __future__ import annotations

import tracemalloc

import pytest

from qmpfilter.errors import BugError, FramingError, LimitError, StreamError, TruncatedError, UnsupportedError
from qmpfilter.wire.events import Event, RamRecords, VmDescriptionReceived
from qmpfilter.wire.feed import NEED_DATA
from qmpfilter.wire.framing import BE32, BE64, Command
from qmpfilter.wire.parser import Limits, State, StreamParser
from tests.helpers import build
from tests.helpers.parse import drain, merged, parse, pieces, rejoined
from tests.wire.transcripts import TRANSCRIPTS, expected_events, stream

EVERY_TRANSCRIPT = pytest.mark.parametrize("name", TRANSCRIPTS)


@EVERY_TRANSCRIPT
def test_transcript(name: str) -> None:
    data = stream(TRANSCRIPTS[name])
    parsed = parse(data)
    assert parsed.error is None
    assert merged(parsed.events) == expected_events(TRANSCRIPTS[name])
    assert rejoined(parsed.events) == data


@EVERY_TRANSCRIPT
@pytest.mark.parametrize("size", [1, 2, 3, 13, 4104])
def test_in_pieces(name: str, size: int) -> None:
    data = stream(TRANSCRIPTS[name])
    parsed = parse(data, size)
    assert parsed.error is None
    assert merged(parsed.events) == expected_events(TRANSCRIPTS[name])
    assert rejoined(parsed.events) == data


@pytest.mark.fuzz
@EVERY_TRANSCRIPT
def test_split_at_every_position(name: str) -> None:
    data = stream(TRANSCRIPTS[name])
    expected = expected_events(TRANSCRIPTS[name])
    for cut in range(1, len(data)):
        parsed = parse(data, [cut])
        assert parsed.error is None, cut
        assert merged(parsed.events) == expected, cut


@pytest.mark.fuzz
@EVERY_TRANSCRIPT
@pytest.mark.parametrize("size", [1, 7, 100, 4104, 5000])
def test_pages_may_be_passed_without_events(name: str, size: int) -> None:
    """Nothing else is told differently then, or stands elsewhere."""
    parser, other = StreamParser(), StreamParser()
    told: list[Event] = []
    expected: list[Event] = []
    passed = 0
    for piece in pieces(stream(TRANSCRIPTS[name]), size):
        other.receive_data(piece)
        drain(other, expected)
        if parser.pass_pages(memoryview(piece)):
            passed += len(piece)
        else:
            parser.receive_data(piece)
            drain(parser, told)
        assert (parser.offset, parser.state) == (other.offset, other.state)
    assert _without_ram(told) == _without_ram(expected)
    assert passed + len(rejoined(told)) == len(rejoined(expected))


def _without_ram(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, RamRecords)]


@EVERY_TRANSCRIPT
@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.fuzz)])
def test_cut_at_every_position(name: str, step: int) -> None:
    data = stream(TRANSCRIPTS[name])
    for cut in range(0, len(data), step):
        parsed = parse(data[:cut])
        assert isinstance(parsed.error, TruncatedError), (cut, parsed.error)
        told = rejoined(parsed.events)
        assert data.startswith(told), cut
        assert len(told) <= parsed.error.offset <= cut


def test_states() -> None:
    parser = StreamParser()
    seen = [parser.state]
    for raw, _ in TRANSCRIPTS["precopy"]:
        parser.receive_data(raw)
        drain(parser, [])
        if parser.state is not seen[-1]:
            seen.append(parser.state)
    # The sections after `timer` wait for vmdesc, with which the stream ends.
    assert [state.name for state in seen] == ["HEADER", "CONFIGURATION", "SETUP", "ITERATE", "TAIL", "DONE"]


def test_states_of_postcopy() -> None:
    parser = StreamParser()
    seen = [parser.state]
    for raw, _ in TRANSCRIPTS["postcopy"]:
        if not raw:
            continue
        parser.receive_data(raw)
        drain(parser, [])
        if parser.state is not seen[-1]:
            seen.append(parser.state)
    assert [state.name for state in seen] == [
        "HEADER", "CONFIGURATION", "SETUP", "ITERATE", "PACKAGE", "POSTCOPY", "DONE",
    ]  # fmt: skip


def test_state_between_eof_and_vmdesc() -> None:
    parser = StreamParser()
    parser.receive_data(build.UNTIL_TAIL + build.timer().section() + build.EOF)
    drain(parser, [])
    assert parser.state is State.DESCRIPTION
    assert repr(parser) == f"<StreamParser DESCRIPTION at {parser.offset:#x}>"


def test_vmdesc_is_told_with_its_devices() -> None:
    (told,) = parse(stream(TRANSCRIPTS["precopy"])).of(VmDescriptionReceived)
    assert [device.name for device in told.vmdesc.devices] == ["timer", "PCIBUS", "cpu_common", "globalstate"]


BEGUN = build.header() + build.configuration()
LISTED = BEGUN + build.start(build.mem_size(build.PAGE, build.row("pc.ram", build.PAGE)) + build.EOS)
ITERATED = LISTED + build.part(build.EOS)
PACKAGED = ITERATED + build.package(build.command(Command.POSTCOPY_LISTEN))


@pytest.mark.parametrize(
    ("before", "wrong", "error", "at", "words"),
    [
        # not a main channel
        (b"", b"\x16\x03\x01\x02\0\1", UnsupportedError, 0, "TLS"),
        (b"", b"\x11\x22\x33\x44\0\0\0\1", UnsupportedError, 0, "multifd"),
        (b"", b"QCPR\0\0\0\1", UnsupportedError, 0, "CPR"),
        (b"", build.command(Command.POSTCOPY_RESUME), UnsupportedError, 0, "resumed postcopy"),
        (b"", b"GET / HTTP", FramingError, 0, "magic"),
        (b"", b"QEVN\0\0\0\3", FramingError, 0, "magic"),
        (b"", build.header(version=2), FramingError, 4, "version 3"),
        (b"", build.header(version=4), FramingError, 4, "version 3"),
        # CONFIGURATION
        (build.header(), build.start(build.mem_size(0) + build.EOS), UnsupportedError, 0, "send-configuration"),
        (build.header(), build.configuration("\x1b[2J") + build.EOF, FramingError, 5, "printable name"),
        (build.header(), build.configuration("") + build.EOF, FramingError, 5, "printable name"),
        (build.header(), b"\7" + BE32.pack(4097), LimitError, 1, "machine name"),
        (build.header(), b"\7\xff\xff\xff\xff", LimitError, 1, "machine name"),
        (build.header(), build.configuration("pc", build.subsection("configuration/x")), FramingError, 7, "known"),
        (build.header(), build.configuration("pc", build.subsection("")), FramingError, 7, "known"),
        (build.header() + build.configuration("pc", build.subsection("configuration/capabilities")), b"\0\0\0\x41",
         LimitError, 0, "64 capabilities"),
        (build.header() + build.configuration("pc", build.subsection("configuration/capabilities", b"\0\0\0\1")),
         b"\1\n", FramingError, 1, "a capability"),
        (build.header(), build.configuration("pc", build.capabilities("mapped-ram")) + build.EOF, UnsupportedError, 0,
         "without mapped-ram"),
        # what may stand where
        (BEGUN, build.EOF, FramingError, 0, "SETUP"),
        (BEGUN, build.subsection("timer/icount"), FramingError, 0, "a known subsection"),
        (BEGUN, b"\x06", FramingError, 0, "SETUP"),
        (BEGUN, b"\x07", FramingError, 0, "SETUP"),
        (BEGUN, b"\x09", FramingError, 0, "SETUP"),
        (BEGUN, build.part(build.EOS), FramingError, 1, "was started"),
        (ITERATED, b"\x7e", FramingError, 0, "ITERATE"),
        (ITERATED, build.configuration(), FramingError, 0, "ITERATE"),
        (ITERATED, build.part(build.EOS, 3), FramingError, 1, "was started"),
        (ITERATED + build.end(build.EOS), build.part(build.EOS), FramingError, 1, "was started"),
        (ITERATED + build.end(build.EOS), build.end(build.EOS), FramingError, 1, "was started"),
        (PACKAGED, build.timer().section(), FramingError, 0, "POSTCOPY"),
        (PACKAGED, build.start(build.EOS, 9), FramingError, 0, "POSTCOPY"),
        # commands
        (BEGUN, build.command(0), FramingError, 1, "1 to 11"),
        (BEGUN, build.command(12), FramingError, 1, "1 to 11"),
        (BEGUN, build.command(Command.PING, b"123"), FramingError, 3, "PING"),
        (BEGUN, build.command(Command.OPEN_RETURN_PATH, b"1"), FramingError, 3, "OPEN_RETURN_PATH"),
        (BEGUN, build.command(Command.POSTCOPY_ADVISE, b"12345678"), FramingError, 3, "POSTCOPY_ADVISE"),
        (BEGUN, build.command(Command.PACKAGED), FramingError, 3, "PACKAGED"),
        (BEGUN, build.command(Command.ENABLE_COLO), UnsupportedError, 0, "x-colo"),
        (BEGUN, build.command(Command.POSTCOPY_RESUME), UnsupportedError, 0, "postcopy that is resumed"),
        (BEGUN, build.command(Command.RECV_BITMAP, build.label("pc.ram")), UnsupportedError, 0, "not postcopy"),
        (BEGUN, build.package(), FramingError, 0, "a part that may stand"),
        (LISTED, build.package(), FramingError, 0, "a part that may stand"),
        (PACKAGED, build.package(), FramingError, 0, "a part that may stand"),
        (ITERATED, build.command(Command.PACKAGED, b"\1\0\0\1"), LimitError, 5, "a package of at most"),
        (build.header() + build.configuration(build.MACHINE, build.uuid(bytes(16))), build.uuid(bytes(16)),
         FramingError, 0, "once"),
        # iterables
        (BEGUN, build.start(b"", idstr=""), FramingError, 6, "a section"),
        (BEGUN, build.start(b"", idstr="ram\n"), FramingError, 6, "a section"),
        (BEGUN, build.start(b"", version=3), FramingError, 0, "one section 'ram' 0 of version 4"),
        (BEGUN, build.start(b"", version=5), FramingError, 0, "one section 'ram' 0 of version 4"),
        (BEGUN, build.start(b"", instance_id=1), FramingError, 0, "one section 'ram' 0 of version 4"),
        (LISTED, build.start(build.EOS), FramingError, 1, "not in use"),
        (LISTED, build.start(build.EOS, 3), FramingError, 0, "one section 'ram'"),
        (LISTED, build.start(build.EOS, 3, "block", 0, 1), UnsupportedError, 0, "can be delimited"),
        (LISTED, build.start(build.EOS, 3, "ram2"), UnsupportedError, 0, "can be delimited"),
        # RAM
        (BEGUN + build.start(b"")[:-5], build.word(0x2000, 0x80), FramingError, 0, "RAM record's word"),
        (ITERATED + build.part(b"")[:-5], build.word(0, 0x80), FramingError, 0, "RAM record's word"),
        # no footers, and footers of another section
        (BEGUN + build.start(build.mem_size(0) + build.EOS)[:-5], b"\2\0\0\0\2", FramingError, 0, "7e 00 00 00 02"),
        (ITERATED + build.part(build.EOS)[:-5], build.footer(3), FramingError, 0, "7e 00 00 00 02"),
        # after the end
        (stream(TRANSCRIPTS["precopy"]), b"\0", FramingError, 0, "nothing after the end"),
        (stream(TRANSCRIPTS["postcopy"]), build.description(b'{"'), FramingError, 0, "nothing after the end"),
        (stream(TRANSCRIPTS["known devices only"]), build.header(), FramingError, 0, "nothing after the end"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [None, 1])
def test_refused(
    before: bytes, wrong: bytes, error: type[StreamError], at: int, words: str, size: int | None
) -> None:
    parsed = parse(before + wrong, size)
    assert parsed.fault == (error, len(before) + at), parsed.error
    assert parsed.error is not None
    assert words in parsed.error.expected + parsed.error.found


def test_errors_are_final() -> None:
    parser = StreamParser()
    parser.receive_data(ITERATED + b"\x7e")
    with pytest.raises(FramingError) as first:
        drain(parser, [])
    assert parser.state is State.FAILED
    for _ in range(2):
        with pytest.raises(FramingError) as again:
            parser.next_event()
        assert again.value is first.value
    parser.receive_eof()
    with pytest.raises(FramingError):
        parser.next_event()


def test_mapped_ram_is_told_before_it_is_refused() -> None:
    parsed = parse(build.header() + build.configuration("pc", build.capabilities("mapped-ram")) + build.EOF)
    assert [type(event).__name__ for event in parsed.events] == ["Header", "MachineConfiguration"]


def test_data_must_be_drained_before_more_is_given() -> None:
    parser = StreamParser()
    parser.receive_data(BEGUN)
    parser.next_event()
    with pytest.raises(BugError):
        parser.receive_data(b"")


def test_no_data_after_the_end() -> None:
    parser = StreamParser()
    parser.receive_eof()
    with pytest.raises(BugError):
        parser.receive_data(b"")


def test_waits_without_data_and_after_the_end() -> None:
    parser = StreamParser()
    assert [parser.next_event(), parser.next_event()] == [NEED_DATA, NEED_DATA]
    parser.receive_data(stream(TRANSCRIPTS["precopy"]))
    drain(parser, [])
    parser.receive_eof()
    assert [parser.next_event(), parser.next_event()] == [NEED_DATA, NEED_DATA]
    assert parser.state is State.DONE


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_takes_any_buffer(wrap: type[bytes]) -> None:
    data = stream(TRANSCRIPTS["precopy"])
    parser = StreamParser()
    parser.receive_data(wrap(data))
    events: list[Event] = []
    drain(parser, events)
    assert rejoined(events) == data


@pytest.mark.parametrize(
    "data",
    [
        build.header() + b"\7\xff\xff\xff\xff",
        ITERATED + build.command(Command.PACKAGED, b"\xff\xff\xff\xff"),
        ITERATED + build.part(build.word(0, 0x100) + build.label("pc.ram") + b"\xff" * 4),
        BEGUN + build.start(build.word(0xFFFFFFFFFFFFF000, 4) + build.row("pc.ram", 0xFFFFFFFFFFFFF000) + build.EOS),
        BEGUN + build.start(b"\x40" + bytes(12) + BE64.pack(2**64 - 1), 1, "dirty-bitmap", 0, 1),
        BEGUN + build.start(BE64.pack(0xFFFFFFFFEF100004) + BE64.pack(2**64 - 1), 1, "0/vfio", 0, 1),
        build.UNTIL_TAIL + build.EOF + b"\6\xff\xff\xff\xff",
        build.UNTIL_TAIL + build.opaque(9, "x", b"").section() + build.EOF + b'\6\xff\xff\xff\xff{"',
    ],
)
def test_huge_lengths_cost_no_memory(data: bytes) -> None:
    tracemalloc.start()
    parsed = parse(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(parsed.error, LimitError | TruncatedError)
    assert peak < 1 << 20


def test_limit_of_a_package() -> None:
    at_limit = ITERATED + build.package(build.command(Command.POSTCOPY_LISTEN))
    assert parse(at_limit + build.EOF, limits=Limits(package=5)).error is None
    over = ITERATED + build.package(build.command(Command.POSTCOPY_LISTEN), build.command(Command.POSTCOPY_RUN))
    assert parse(over, limits=Limits(package=5)).fault == (LimitError, len(ITERATED) + 5)
