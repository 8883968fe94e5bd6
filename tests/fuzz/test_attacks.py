# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks that were thought out, by a hostile guest (its devices' state) or a hostile source (everything)."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from qmpfilter.errors import FramingError, LayoutError, LimitError, StreamError
from qmpfilter.wire.events import DeviceSection
from qmpfilter.wire.framing import BE32, Command
from qmpfilter.wire.vmdesc import VmDescription
from tests.helpers import build
from tests.helpers.build import EOS, UNTIL_TAIL
from tests.helpers.parse import Parsed, parse
from tests.helpers.report import report_of

UMWAIT = build.Vmsd("cpu/umwait", (build.field("umwait", bytes(4)),))
NOPE = build.Vmsd("cpu/nope", (build.field("x", bytes(3)),))
BEFORE_RAM = build.header() + build.configuration()
RAM_LIST = build.start(build.mem_size(build.PAGE, build.row("pc.ram", build.PAGE)) + EOS)
BITMAP = "dirty-bitmap"


def devices(parsed: Parsed) -> list[tuple[str, int]]:
    return [(event.idstr, event.instance_id) for event in parsed.of(DeviceSection)]


def looks_like_vmdesc(text: bytes) -> bytes:
    return build.footer(7) + build.EOF + build.description(text)


@pytest.mark.parametrize("chunks", [None, 1, 13, 1000])
def test_a_whole_vmdesc_in_a_devices_state_is_not_taken_for_the_real_one(chunks: int | None) -> None:
    forged = looks_like_vmdesc(b'{"page_size": 4096, "devices": []}')
    stream = UNTIL_TAIL + build.tail(build.opaque(9, "thing", b"before" + forged + b"after"), build.cpu(10))
    parsed = parse(stream, chunks)
    assert parsed.error is None
    assert devices(parsed) == [("thing", 0), ("cpu", 0)]


@pytest.mark.parametrize("chunks", [None, 1, 13, 1000])
def test_a_place_like_vmdesc_that_overlaps_the_real_one_does_not_hide_it(chunks: int | None) -> None:
    # The real one's length is 0x7b22: as text {" too, ten bytes into what begins two bytes before it.
    device = build.opaque(6, "thing", b"x\x7e")
    real = build.vmdesc([device])
    filled = real[:1] + b'"x": "' + b"x" * (0x7B22 - len(real) - 9) + b'", ' + real[1:]
    assert len(filled) == 0x7B22
    parsed = parse(UNTIL_TAIL + device.section() + build.EOF + build.description(filled), chunks)
    assert parsed.error is None


def test_places_like_vmdesc_are_counted_the_same_however_the_input_is_divided() -> None:
    places = b"".join(looks_like_vmdesc(b'{"x')[:-1] for _ in range(300))
    stream = UNTIL_TAIL + build.tail(build.opaque(9, "thing", places))
    whole = parse(stream)
    assert isinstance(whole.error, LimitError)
    assert whole.fault == parse(stream, 1).fault == parse(stream, 77).fault


@pytest.mark.parametrize("subsections", [(UMWAIT, UMWAIT), (UMWAIT, NOPE, UMWAIT)])
def test_a_subsection_that_comes_twice_is_refused(subsections: tuple[build.Vmsd, ...]) -> None:
    """QEMU would load the last, the report show the first."""
    for stream in (
        UNTIL_TAIL + build.tail(build.cpu(10, 0, *subsections)),
        UNTIL_TAIL + build.tail(build.opaque(9, "thing", b"x"), build.cpu(10, 0, *subsections)),
        UNTIL_TAIL + build.package(build.cpu(10, 0, *subsections).section()),
    ):
        assert isinstance(parse(stream).error, LayoutError)


@pytest.mark.parametrize("short", [0, 1, 1816])
@pytest.mark.parametrize("told_size", [0, 1, 3000])
def test_a_cpu_section_that_vmdesc_tells_shorter_is_refused(short: int, told_size: int) -> None:
    real, told = build.cpu(10, short=short), build.opaque(10, "cpu", bytes(told_size), version=12)
    first = build.opaque(9, "thing", b"x")
    stream = UNTIL_TAIL + build.tail(first, real, described=(first, told))
    assert isinstance(parse(stream).error, LayoutError)


def test_a_cpu_section_cannot_come_before_ram() -> None:
    parsed = parse(BEFORE_RAM + build.cpu(10, short=1800).section() + RAM_LIST)
    assert parsed.fault == (FramingError, len(BEFORE_RAM))


def test_a_short_cpu_section_in_a_package_is_refused() -> None:
    body = b"\x05" * 20
    stream = UNTIL_TAIL + build.package(build.full(9, "cpu", body, version=12), build.full(10, "thing", b"abc"))
    assert isinstance(parse(stream).error, LayoutError)


def test_a_section_forged_inside_another_in_a_package_is_refused() -> None:
    """It has to end with the footer of the one around it, and so to have its section_id."""
    forged = build.footer(9) + build.cpu(10, 7).section() + build.full(9, "again", b"")[:-5]
    stream = UNTIL_TAIL + build.package(build.full(9, "thing", b"state" + forged), build.cpu(11).section())
    parsed = parse(stream)
    assert isinstance(parsed.error, FramingError)


def test_a_section_cannot_come_twice_in_a_package() -> None:
    stream = UNTIL_TAIL + build.package(build.cpu(10).section(), build.cpu(11).section())
    assert isinstance(parse(stream).error, FramingError)


@pytest.mark.parametrize("before", [BEFORE_RAM + RAM_LIST, UNTIL_TAIL + build.package()])
def test_a_package_out_of_place_is_refused(before: bytes) -> None:
    assert parse(before + build.package()).fault == (FramingError, len(before))


@pytest.mark.parametrize(("chunks", "pages"), [(None, 41), (1, 5), (50, 41)])
def test_a_footer_in_an_early_device_needs_a_whole_part_behind_it(chunks: int | None, pages: int) -> None:
    """What is not whole yet is waited for, and EOF cannot follow there."""
    tricks = build.footer(9) + b"\x00" + build.footer(9) + b"\x04" + BE32.pack(1) + b"\x01\xff"
    early = build.opaque(9, "virtio-mem-early", tricks)
    ram = build.part(build.page(0, "pc.ram") + build.page(0) * (pages - 1) + EOS) + build.end(EOS)
    stream = BEFORE_RAM + early.section() + RAM_LIST + ram + build.EOF + build.description(build.vmdesc([early]))
    parsed = parse(stream, chunks)
    assert parsed.error is None
    assert parsed.of(DeviceSection)[0].raw == early.section()


def test_footers_without_end_take_no_quadratic_time() -> None:
    early = build.full(9, "thing", (build.footer(9) + b"\xff") * 150_000)[:-5]
    start = time.process_time()
    assert isinstance(parse(BEFORE_RAM + early, 4096).error, StreamError)
    assert time.process_time() - start < 2


def test_known_and_unknown_subsections_in_turns_take_no_quadratic_time() -> None:
    turns = (build.subsection("?") + build.subsection("cpu/umwait", bytes(4))) * 20_000
    package = build.full(9, "cpu", bytes(build.CPU_FIELDS) + turns, version=12)
    start = time.process_time()
    assert isinstance(parse(UNTIL_TAIL + build.package(package)).error, LayoutError)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("bomb", [b"[" + b"[]," * 500_000 + b"[]]", b"[" + b"1," * 700_000 + b"1]"])
def test_vmdesc_cannot_become_much_larger_than_its_text(bomb: bytes) -> None:
    text = b'{"page_size": 4096, "x": ' + bomb + b', "devices": []}'
    tracemalloc.start()
    with pytest.raises(LayoutError):
        VmDescription.parse(text)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * len(text)


def test_the_report_does_not_grow_with_the_length_of_a_stream() -> None:
    def bitmap(section_id: int) -> bytes:
        return build.part(b"\x01", section_id)

    setup = build.start(b"\x01", 5, BITMAP) + build.start(b"\x01", 6, BITMAP)
    discards = build.discard("pc.ram", (0, build.PAGE)) * 500
    stream = BEFORE_RAM + RAM_LIST + setup + (bitmap(5) + bitmap(6) + build.part(EOS)) * 500 + discards
    report = report_of(stream)
    assert [(row.type, row.count) for row in report.sections if row.count > 1] == [("PART", 500)] * 3 + [
        ("COMMAND", 500)
    ]
    assert len(report.sections) == 8
    assert sum(row.size for row in report.sections) + 8 == len(stream)


def test_rows_beyond_any_real_number_are_counted_and_not_kept() -> None:
    pings = b"".join(build.command(Command.PING, BE32.pack(number)) for number in range(33_000))
    report = report_of(BEFORE_RAM + RAM_LIST + pings)
    assert len(report.sections) == 32_768
    assert report.rows_left_out == 33_002 - 32_768


def test_iterables_and_sections_have_a_most() -> None:
    many = b"".join(build.start(b"\x01", number + 10, BITMAP, number, 1) for number in range(4_100))
    assert isinstance(parse(BEFORE_RAM + many).error, LimitError)
    timers = b"".join(build.full(number, "timer", bytes(24), number, 2) for number in range(16_400))
    assert isinstance(parse(UNTIL_TAIL + timers).error, LimitError)
