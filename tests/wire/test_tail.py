# SPDX-License-Identifier: GPL-2.0-or-later
"""From the first device section to the end of vmdesc."""

from __future__ import annotations

import pytest

from qmpfilter.errors import FramingError, LayoutError, LimitError, StreamError, TruncatedError
from qmpfilter.wire.events import DelimitedBy, DeviceSection, Event, SectionsEnd, SectionsHeld, VmDescriptionReceived
from qmpfilter.wire.framing import BE32
from qmpfilter.wire.parser import Limits, StreamParser
from tests.helpers import build
from tests.helpers.parse import Parsed, drain, merged, parse, rejoined

START = len(build.UNTIL_TAIL)
SETUP = build.header() + build.configuration()

TIMER = build.timer()
COMMON = build.cpu_common(3)
TSC = build.Vmsd("cpu/tsc_khz", (build.field("env.tsc_khz", bytes(8), "int64"),))
NEW = build.Vmsd("cpu/from_the_future", (build.field("x", b"future"),))
CPU = build.cpu(4, 0, TSC)
BUS = build.opaque(9, "PCIBUS", b"\0\0\0\x03abc")
STATE = build.opaque(41, "globalstate", b"running\0")


def told(parsed: Parsed) -> list[tuple[str, str]]:
    """Sections with how they were delimited."""
    return [(section.idstr, section.delimited_by.name) for section in parsed.of(DeviceSection)]


def parsed_tail(tail: bytes, chunks: int | None = None, limits: Limits | None = None) -> Parsed:
    return parse(build.UNTIL_TAIL + tail, chunks, limits)


def whole(*devices: build.Device) -> Parsed:
    """A tail that must be accepted, in any division."""
    data = build.UNTIL_TAIL + build.tail(*devices)
    parsed = parse(data)
    assert parsed.error is None, parsed.error
    assert rejoined(parsed.events) == data
    for size in (1, 7, 64):
        again = parse(data, size)
        assert (again.error, merged(again.events)) == (None, merged(parsed.events)), size
    return parsed


# --- what is told when


def events_so_far(data: bytes) -> list[Event]:
    parser = StreamParser()
    parser.receive_data(data)
    events: list[Event] = []
    drain(parser, events)
    return events


@pytest.mark.parametrize("device", [TIMER, COMMON, CPU, build.cpu(4, 0, build.nested_svm())])
def test_known_sections_are_told_as_they_come(device: build.Device) -> None:
    last = events_so_far(build.UNTIL_TAIL + device.section())[-1]
    assert isinstance(last, DeviceSection)
    assert last.raw == device.section()
    before = events_so_far(build.UNTIL_TAIL + device.section()[:-1])
    assert not isinstance(before[-1], DeviceSection)


def test_eof_is_told_at_once_if_nothing_is_held() -> None:
    assert isinstance(events_so_far(build.UNTIL_TAIL + TIMER.section() + build.EOF)[-1], SectionsEnd)


def test_everything_is_held_from_the_first_unknown_section() -> None:
    tail = build.tail(TIMER, BUS, COMMON)
    before = events_so_far(build.UNTIL_TAIL + tail[:-1])
    assert [event.idstr for event in before if isinstance(event, DeviceSection)] == ["timer"]
    after = events_so_far(build.UNTIL_TAIL + tail)
    assert [type(event).__name__ for event in after[len(before) :]] == [
        "SectionsHeld", "DeviceSection", "DeviceSection", "SectionsEnd", "VmDescriptionReceived",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ((), []),
        ((TIMER, COMMON, CPU), [("timer", "LAYOUT"), ("cpu_common", "LAYOUT"), ("cpu", "LAYOUT")]),
        ((BUS,), [("PCIBUS", "VMDESC")]),
        ((CPU, BUS, COMMON), [("cpu", "LAYOUT"), ("PCIBUS", "VMDESC"), ("cpu_common", "VMDESC")]),
        ((TIMER, build.cpu(4, 0, NEW), STATE), [("timer", "LAYOUT"), ("cpu", "VMDESC"), ("globalstate", "VMDESC")]),
        ((build.Device(5, "slirp", bytes(99)), STATE), [("slirp", "VMDESC"), ("globalstate", "VMDESC")]),
    ],
)
def test_sections(devices: tuple[build.Device, ...], expected: list[tuple[str, str]]) -> None:
    assert told(whole(*devices)) == expected


# --- what a guest can put into its devices' state

FORGED_TEXT = build.description(build.vmdesc([BUS]))
FORGERIES = {
    "a footer and a whole section": build.footer(8) + build.cpu_common(8, 5).section(),
    "a footer and the next section": build.footer(8) + STATE.section(),
    "a footer and EOF": build.footer(8) + build.EOF,
    "the start of vmdesc": build.footer(8) + build.EOF + b'\x06\0\0\0\x09{"forged"',
    "a vmdesc of nothing": build.footer(8) + build.EOF + build.description(b'{"page_size": 4096, "devices": []}'),
    "a vmdesc of something else": build.footer(8) + build.EOF + FORGED_TEXT,
    "a vmdesc longer than all": build.footer(8) + build.EOF + b'\x06\0\x7f\xff\xff{"',
    "a vmdesc beyond the limit": build.footer(8) + build.EOF + b'\x06\xff\xff\xff\xff{"',
    "a vmdesc that overlaps": b"\x7e" + build.footer(8)[:4] + b"\0\x06",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged(forgery: str) -> None:
    hostile = build.opaque(8, "serial", b"text" + FORGERIES[forgery] + b"text")
    assert told(whole(TIMER, hostile, STATE)) == [
        ("timer", "LAYOUT"),
        ("serial", "VMDESC"),
        ("globalstate", "VMDESC"),
    ]


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_goes_ahead_ends_before_what_looks_like_the_end(forgery: str) -> None:
    hostile = build.opaque(8, "serial", b"text" + FORGERIES[forgery] + b"text")
    [found] = whole(TIMER, BUS, hostile, STATE).of(SectionsHeld)
    sections = BUS.section() + hostile.section() + STATE.section()
    forged = sections.find(build.footer(8) + build.EOF)
    looks_like_it = b'{"' in FORGERIES[forgery]
    assert found.ahead == (sections[: forged + len(build.footer(8))] if looks_like_it else sections)


def test_what_goes_ahead_ends_before_what_looks_like_a_vcpu() -> None:
    hostile = build.opaque(8, "serial", b"text" + CPU.section()[:20])
    [found] = whole(TIMER, BUS, hostile, STATE).of(SectionsHeld)
    assert found.ahead == BUS.section() + hostile.section().partition(CPU.section()[:20])[0]


def test_nothing_goes_ahead_of_a_vcpu_of_unknown_layout() -> None:
    assert not whole(build.cpu(4, 0, NEW), STATE).of(SectionsHeld)


def test_place_of_vmdesc_that_overlaps_the_true_one() -> None:
    """The last section's id and vmdesc's length may together with two bytes before them look like one more."""
    last = build.opaque(6, "serial", b"\x7e\0")
    text = build.vmdesc([last])[:-1] + b', "padding": "'
    text += b"x" * (0x7B22 - len(text) - 2) + b'"}'
    assert len(text).to_bytes(4, "big") == b'\0\0{"'
    parsed = parsed_tail(last.section() + build.EOF + build.description(text))
    assert (parsed.error, told(parsed)) == (None, [("serial", "VMDESC")])


UNEVEN = build.Device(
    11, "uneven", build.Vmsd("c", (build.Field("names", b"x-ignore-sharedmapped-ram", array_len=2, size=16),))
)


@pytest.mark.parametrize("devices", [(UNEVEN,), (UNEVEN, STATE), (TIMER, UNEVEN, COMMON)])
def test_wrong_size_of_an_uneven_array(devices: tuple[build.Device, ...]) -> None:
    assert ("uneven", "FOOTER") in told(whole(*devices))


# --- refused


def disagreeing(*described: build.Device, devices: tuple[build.Device, ...]) -> bytes:
    """A tail whose vmdesc lists other devices."""
    return build.tail(*devices, described=described)


RENAMED = build.cpu(4, 0, build.Vmsd("cpu/tsc_khx", TSC.fields))
AT_BUS = len(TIMER.section())
AT_EOF = len(TIMER.section() + COMMON.section())


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("longer", [1, 7])
def test_vmdesc_knows_better_than_a_layout_that_is_not_binding(longer: int, size: int | None) -> None:
    """A later QEMU may add to what stands beside the vCPUs without counting up its version."""
    grown = build.opaque(1, "timer", b"\1" * (24 + longer), version=2)
    parsed = parsed_tail(build.tail(grown, CPU), size)
    assert parsed.error is None
    assert [(event.idstr, event.delimited_by) for event in parsed.of(DeviceSection)] == [
        ("timer", DelimitedBy.VMDESC),
        ("cpu", DelimitedBy.VMDESC),
    ]


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("tail", "error", "at", "expected"),
    [
        # other parts
        (TIMER.section() + build.command(2, bytes(4)), FramingError, AT_BUS, "a device section or EOF"),
        (TIMER.section() + build.part(build.EOS), FramingError, AT_BUS, "a device section or EOF"),
        (TIMER.section() + TIMER.section(), FramingError, AT_BUS, "each device section once"),
        (build.full(1, "", b""), FramingError, 0, "a printable section name"),
        (build.full(1, "timer", b"", version=1001), FramingError, 0, "a version of section 'timer' up to 1000"),
        (build.cpu(1, 0, short=8).section() + TIMER.section(), LayoutError, 17 + 1817, "footer 7e 00 00 00 01"),
        # vmdesc
        (build.EOF + build.configuration(), FramingError, 1, "vmdesc 06 after EOF"),
        (build.EOF + build.header(), FramingError, 1, "vmdesc 06 after EOF"),
        (build.EOF + build.description(b""), LayoutError, 1 + 5, "{ in vmdesc"),
        (build.EOF + build.description(b'{"page_size": x}'), LayoutError, 1 + 5 + 14, "JSON of vmdesc"),
        (build.EOF + b"\x06\x01\0\0\0", LimitError, 2, "a vmdesc of at most 8388608 bytes"),
        # vmdesc against sections that are told already
        (disagreeing(TIMER, devices=(TIMER, COMMON)), LayoutError, AT_EOF + 1, "the 1 device sections"),
        (disagreeing(TIMER, COMMON, CPU, devices=(TIMER, COMMON)), LayoutError, AT_EOF + 1, "the 3 device sections"),
        (disagreeing(COMMON, TIMER, devices=(TIMER, COMMON)), LayoutError, 0, "section 'cpu_common' 0 of 8 bytes"),
        (disagreeing(TIMER, build.cpu_common(3, 1), devices=(TIMER, COMMON)), LayoutError, AT_BUS,
         "section 'cpu_common' 1"),
        (disagreeing(TIMER, build.cpu(4, 0), devices=(TIMER, CPU)), LayoutError, AT_BUS, "section 'cpu' 0 of 1817"),
        (disagreeing(TIMER, RENAMED, devices=(TIMER, CPU)), LayoutError, AT_BUS, "cpu/tsc_khx (25)"),
        # vmdesc against sections that it divides
        (disagreeing(TIMER, STATE, devices=(TIMER, BUS)), LayoutError, AT_BUS, "section 'globalstate' 0, the next"),
        (disagreeing(TIMER, devices=(TIMER, BUS)), LayoutError, AT_BUS, "EOF after the last section"),
        (disagreeing(TIMER, BUS, STATE, devices=(TIMER, BUS)), LayoutError, AT_BUS + 32, "section 'globalstate' 0"),
        (disagreeing(BUS, build.cpu_common(3, 1), devices=(BUS, COMMON)), LayoutError, 32, "section 'cpu_common' 1"),
        (disagreeing(BUS, build.cpu(4, 0), devices=(BUS, CPU)), LayoutError, 32, "section 'cpu' 0 of 1817"),
        (build.tail(BUS, BUS), FramingError, 32, "each device section once"),
        (build.tail(BUS, build.opaque(9, "other", b"")), FramingError, 32 + 1, "a section_id that no other"),
        # vmdesc is missing
        (build.tail(TIMER)[:AT_BUS] + build.EOF, TruncatedError, AT_BUS + 1, "a section's type byte"),
        (TIMER.section() + BUS.section() + build.EOF, TruncatedError, AT_BUS + 33, "vmdesc after the device"),
    ],
)  # fmt: skip
def test_refused(tail: bytes, error: type[StreamError], at: int, expected: str, size: int | None) -> None:
    parsed = parsed_tail(tail, size)
    assert parsed.fault == (error, START + at), parsed.error
    assert parsed.error is not None
    assert expected in parsed.error.expected
    assert not parsed.of(VmDescriptionReceived)


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_held_sections_are_told_when_the_stream_is_cut(cut: int) -> None:
    tail = build.tail(TIMER, BUS, COMMON, CPU)
    parsed = parsed_tail(tail[:-cut])
    assert [idstr for idstr, _ in told(parsed)] == ["timer", "PCIBUS", "cpu_common", "cpu"]
    assert parsed.fault == (TruncatedError, START + len(tail) - cut)
    assert not parsed.of(SectionsEnd)


def test_the_cut_is_told_even_if_held_bytes_are_forged() -> None:
    """Nothing that stands in a device's state hides why the stream is lost."""
    hostile = build.opaque(8, "serial", build.footer(8) + build.full(9, "cpu", bytes(1830), version=12))
    tail = hostile.section() + STATE.section()
    assert parsed_tail(tail).fault == (TruncatedError, START + len(tail))


# --- limits


@pytest.mark.parametrize("size", [None, 1, 100])
@pytest.mark.parametrize(
    ("tail", "limits", "at", "expected"),
    [
        (build.opaque(9, "x", bytes(999)).section(), Limits(tail=400, vmdesc=400), 800, "at most 400 bytes"),
        (build.EOF + build.description(b" " * 101), Limits(vmdesc=100), 2, "a vmdesc of at most 100 bytes"),
        (build.opaque(9, "x", (build.footer(1) + b'\0\x06\0\0\xff\xff{"') * 300).section(), Limits(),
         15 + 256 * 13, "at most 256 places that look like vmdesc"),
    ],
)  # fmt: skip
def test_limits(tail: bytes, limits: Limits, at: int, expected: str, size: int | None) -> None:
    parsed = parsed_tail(tail, size, limits)
    assert parsed.fault == (LimitError, START + at), parsed.error
    assert parsed.error is not None
    assert expected in parsed.error.expected


# --- device sections before RAM

EARLY = build.opaque(11, "0000:00:03.0/virtio-mem-early", b"\0\0\0\0\x10\0\0\0")
AFTER_EARLY = build.start(build.mem_size(0) + build.EOS) + build.end(build.EOS)


@pytest.mark.parametrize("size", [None, 1, 7])
@pytest.mark.parametrize("body", [b"", b"12345678", build.footer(11) + b"\x09", build.footer(11) + b"\x04\0\0\0\1\0"])
def test_early_section(body: bytes, size: int | None) -> None:
    early = build.opaque(11, "early", body)
    data = SETUP + early.section() + AFTER_EARLY + build.tail(BUS, described=[early, BUS])
    parsed = parse(data, size)
    assert parsed.error is None, parsed.error
    assert rejoined(parsed.events) == data
    assert told(parsed) == [("early", "FOOTER"), ("PCIBUS", "VMDESC")]


def test_early_section_is_checked_against_vmdesc() -> None:
    forged = build.opaque(11, "early", build.footer(11) + build.command(1) + b"rest")
    data = SETUP + EARLY.section() + AFTER_EARLY
    other = build.opaque(11, EARLY.idstr, bytes(9))
    assert parse(data + build.tail(TIMER, described=[other, TIMER])).fault == (LayoutError, len(SETUP))
    assert parse(SETUP + forged.section() + AFTER_EARLY).fault == (FramingError, len(SETUP) + 19 + 5 + 5)


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("early", "error", "at"),
    [
        (build.full(11, "", b""), FramingError, 0),
        (build.full(11, "early", b"", version=1001), FramingError, 0),
        (TIMER.section(), FramingError, 0),
        (EARLY.section() + EARLY.section() + AFTER_EARLY, FramingError, len(EARLY.section())),
        (build.full(11, "early", bytes(200))[:-5] + bytes(200), LimitError, 0),
        (EARLY.section(), TruncatedError, len(EARLY.section())),
        (EARLY.section()[:-1], TruncatedError, len(EARLY.section()) - 1),
    ],
)
def test_refused_early_section(early: bytes, error: type[StreamError], at: int, size: int | None) -> None:
    assert parse(SETUP + early, size, Limits(early=100)).fault == (error, len(SETUP) + at)


def test_vmdesc_is_told_as_it_came() -> None:
    text = build.vmdesc([TIMER]).replace(b", ", b" ,\n")
    parsed = parsed_tail(TIMER.section() + build.EOF + build.description(text))
    (received,) = parsed.of(VmDescriptionReceived)
    assert received.raw == b"\x06" + BE32.pack(len(text)) + text
    assert received.vmdesc.text == text
