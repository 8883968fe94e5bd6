# SPDX-License-Identifier: GPL-2.0-or-later
"""Bodies of `ram` sections: counting records, passing over pages, refusing what QEMU's loader refuses."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpfilter.errors import FramingError, LimitError, StreamError, TruncatedError
from qmpfilter.wire.events import Event, RamBlock, RamBlocks, RamRecords
from qmpfilter.wire.ram import Ram, RamFlag, pass_over, ram_body
from tests.helpers import build
from tests.helpers.parse import drive, merged, raises_at, rejoined

NAMED = build.zero(0, "pc.ram")
HIGHEST = 0xFFFFFFFFFFFFF000
SIZES = [None, 1, 7, 9, 4096, 4104, 4105]


def ram(*names: str, current: str = "") -> Ram:
    return Ram({name: RamBlock(name, build.PAGE) for name in names or ("pc.ram", "pc.bios")}, current)


def body(data: bytes, state: Ram | None = None, size: int | None = None, *, listing: bool = False) -> list[Event]:
    """The merged events of a body that ends with EOS."""
    known = state or ram()
    result: tuple[list[Event], None, int] = drive(lambda feed: ram_body(feed, known, listing=listing), data, size)
    events, _, end = result
    assert rejoined(events) == data[:end]
    assert end == len(data)
    return merged(events)


def test_flags() -> None:
    """The numbers of QEMU's ram.h."""
    assert {flag.name: flag.value for flag in RamFlag} == {
        "ZERO": 0x2,
        "MEM_SIZE": 0x4,
        "PAGE": 0x8,
        "EOS": 0x10,
        "CONTINUE": 0x20,
        "XBZRLE": 0x40,
        "HOOK": 0x80,
        "COMPRESS_PAGE": 0x100,
        "MULTIFD_FLUSH": 0x200,
    }


PAGES = b"".join(build.page(number * build.PAGE) for number in range(100))


@pytest.mark.parametrize("more", [0, 1, 100, 4095])
def test_what_is_only_pages_is_passed_over(more: int) -> None:
    state = ram(current="pc.ram")
    state.pending = 5
    data = bytes(5) + PAGES + build.page(100 * build.PAGE)[: 8 + more if more else 0]
    assert pass_over(memoryview(data), state)
    assert state.pending == (build.PAGE - more if more else 0)


@pytest.mark.parametrize(
    "data",
    [
        PAGES[: 9 * 4104] + build.page(0, "pc.bios") + PAGES,
        PAGES + build.EOS,
        PAGES + build.page(0)[:7],
        PAGES[: 70 * 4104 + 6] + b"\1" + PAGES[70 * 4104 + 7 :],
        PAGES[: 70 * 4104 + 7] + b"\x29" + PAGES[70 * 4104 + 8 :],
    ],
    ids=["another block", "its end", "half a word", "unknown flag", "two kinds"],
)
def test_what_is_not_only_pages_stays(data: bytes) -> None:
    state = ram(current="pc.ram")
    state.pending = 5
    assert not pass_over(memoryview(bytes(5) + data), state)
    assert state.pending == 5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("data", "counts"),
    [
        (build.zero(0, "pc.ram"), {"zero": 1}),
        (build.zero(0, "pc.ram") + build.zero(0x1000), {"zero": 2}),
        (build.page(0, "pc.ram"), {"normal": 1}),
        (build.page(0, "pc.ram") + build.page(0x1000), {"normal": 2}),
        # pages whose contents look like records
        (build.page(0, "pc.ram", build.EOS) + build.page(0, None, build.zero(0)), {"normal": 2}),
        (build.page(0, "pc.ram") + build.zero(HIGHEST) + build.page(HIGHEST), {"normal": 2, "zero": 1}),
        (build.xbzrle(0, b"\1\2xy", "pc.ram") + build.xbzrle(0, b"") + build.xbzrle(0, bytes(4096)), {"xbzrle": 3}),
        (build.compressed(0, bytes(8192), "pc.ram") + build.compressed(0, b""), {"compressed": 2}),
        (build.zero(0, "pc.ram") + build.zero(0, "pc.ram"), {"zero": 2}),
    ],
)  # fmt: skip
def test_records(data: bytes, counts: dict[str, int], size: int | None) -> None:
    assert body(data + build.EOS, None, size) == [
        RamRecords(0, data, "pc.ram", **counts),
        RamRecords(len(data), build.EOS),
    ]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 18, 143, 144, 145, 200])
@pytest.mark.parametrize("size", [None, 4103, 65536])
def test_long_runs(count: int, size: int | None) -> None:
    pages = b"".join(build.page(at * build.PAGE) for at in range(count))
    zeros = b"".join(build.zero(at * build.PAGE) for at in range(count * 9))
    data = pages + zeros + pages
    assert body(data + build.EOS, ram(current="pc.ram"), size) == [
        RamRecords(0, data, "pc.ram", normal=2 * count, zero=9 * count),
        RamRecords(len(data), build.EOS),
    ]


@pytest.mark.parametrize("where", [0, 1, 15, 16, 17, 40])
@pytest.mark.parametrize("size", [None, 1, 100])
@pytest.mark.parametrize(
    ("wrong", "at", "expected"),
    [
        (build.word(0, 0x22) + b"\1", 8, "the fill byte 00"),
        (build.word(0x100, 0x22) + b"\0", 0, "a RAM record's word"),
        (build.word(0x800, 0x28) + b"\0", 0, "a RAM record's word"),
        (build.word(0, 0x80), 0, "a RAM record's word"),
    ],
)
def test_one_wrong_record_in_a_run(wrong: bytes, at: int, expected: str, where: int, size: int | None) -> None:
    zeros = [build.zero(number * build.PAGE) for number in range(41)]
    run = b"".join([*zeros[:where], wrong, *zeros[where:], build.EOS])
    with raises_at(FramingError, 9 * where + at, expected):
        body(run, ram(current="pc.ram"), size)


def test_current_block_is_remembered_across_sections() -> None:
    state = ram()
    body(NAMED + build.EOS, state)
    assert state.current == "pc.ram"
    later = build.zero(0) + build.zero(0, "pc.bios") + build.zero(0x1000)
    assert body(later + build.EOS, state) == [
        RamRecords(0, later[:9], "pc.ram", zero=1),
        RamRecords(9, later[9:], "pc.bios", zero=2),
        RamRecords(len(later), build.EOS),
    ]
    assert state.current == "pc.bios"


def test_flush_belongs_to_no_block() -> None:
    data = NAMED + build.FLUSH + build.zero(0) + build.FLUSH + build.FLUSH
    told = [event for event in body(data + build.EOS) if isinstance(event, RamRecords)]
    assert [(event.block, event.zero, event.multifd_flush) for event in told] == [
        ("pc.ram", 1, 0),
        ("", 0, 1),
        ("pc.ram", 1, 0),
        ("", 0, 2),
    ]


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("before", "wrong", "error", "at", "expected"),
    [
        # the first record names its block
        (b"", build.zero(0), FramingError, 0, "the first page record of the stream to name its block"),
        (b"", build.page(0), FramingError, 0, "the first page record of the stream to name its block"),
        (build.FLUSH, build.xbzrle(0, b""), FramingError, 0, "the first page record of the stream to name its block"),
        # words
        (NAMED, build.word(0, 0x80), FramingError, 0, "a RAM record's word"),
        (NAMED, build.word(0, 0x01), FramingError, 0, "a RAM record's word"),
        (NAMED, build.word(0, 0x20), FramingError, 0, "a RAM record's word"),
        (NAMED, build.word(0, 0x0A), FramingError, 0, "a RAM record's word"),
        (NAMED, build.word(0, 0x30), FramingError, 0, "a RAM record's word"),
        (NAMED, build.word(0x1000, 0x10), FramingError, 0, "a RAM record's word"),
        (NAMED, build.word(0x1000, 0x200), FramingError, 0, "a RAM record's word"),
        (NAMED, build.word(0, 0x400), FramingError, 0, "a RAM record's word"),
        (NAMED, build.word(0, 0x800), FramingError, 0, "a RAM record's word"),
        (NAMED, build.word(0, 0), FramingError, 0, "a RAM record's word"),
        (NAMED, build.mem_size(0x1000, build.row("x", 0x1000)), FramingError, 0, "a RAM record's word"),
        # names
        (NAMED, build.zero(0, "pc.rom"), FramingError, 8, "the name of a RAM block of the MEM_SIZE list"),
        (NAMED, build.zero(0, ""), FramingError, 9, "a printable name"),
        (NAMED, build.zero(0, "a\nb"), FramingError, 9, "a printable name"),
        # contents
        (NAMED, build.zero(0, fill=1), FramingError, 8, "the fill byte 00"),
        (NAMED, build.zero(0, "pc.bios", fill=0xFF), FramingError, 8 + 8, "the fill byte 00"),
        (NAMED, build.xbzrle(0, b"", encoding=0), FramingError, 8, "XBZRLE encoding 01"),
        (NAMED, build.xbzrle(0, bytes(4097)), FramingError, 8, "a length up to 4096"),
        (NAMED, build.compressed(0, bytes(8193)), LimitError, 8, "at most 8192"),
        (NAMED, build.word(0, 0x120) + b"\xff" * 4, LimitError, 8, "at most 8192"),
    ],
)  # fmt: skip
def test_refused(
    before: bytes, wrong: bytes, error: type[StreamError], at: int, expected: str, size: int | None
) -> None:
    with raises_at(error, len(before) + at, expected):
        body(before + wrong + build.EOS, None, size)


ONE_OF_EACH = (
    NAMED
    + build.page(0x1000)
    + build.xbzrle(0x2000, b"delta")
    + build.compressed(0x3000, b"zlib", "pc.bios")
    + build.FLUSH
    + build.EOS
)


def test_cut_anywhere() -> None:
    for cut in range(len(ONE_OF_EACH)):
        with pytest.raises(TruncatedError) as caught:
            body(ONE_OF_EACH[:cut])
        assert caught.value.offset <= cut


def test_cut_inside_a_page_is_told_where_the_input_ends() -> None:
    with raises_at(TruncatedError, len(NAMED) + 8 + 100, "3996 more bytes of a page of 'pc.ram'"):
        body(NAMED + build.page(0)[: 8 + 100])


# --- the block list

PLAIN = build.row("pc.ram", 0x8000) + build.row("pc.bios", 0x1000)


@pytest.mark.parametrize("size", [None, 1, 5])
def test_block_list(size: int | None) -> None:
    state = Ram()
    data = build.mem_size(0x9000, build.row("pc.ram", 0x8000), build.row("pc.bios", 0x1000))
    blocks = (RamBlock("pc.ram", 0x8000), RamBlock("pc.bios", 0x1000))
    assert body(data + build.EOS, state, size, listing=True) == [
        RamBlocks(0, data, 0x9000, blocks),
        RamRecords(len(data), build.EOS),
    ]
    assert tuple(state.blocks.values()) == blocks


HUGE = 0x200000
NEXT_RECORDS = [build.EOS, build.FLUSH + build.EOS, build.zero(0, "first") + build.EOS]


@pytest.mark.parametrize("after", NEXT_RECORDS)
@pytest.mark.parametrize("gpas", [False, True])
@pytest.mark.parametrize("huge", list(itertools.product([None, HUGE], repeat=3)))
@pytest.mark.parametrize("size", [None, 1])
def test_optional_columns(huge: tuple[int | None, ...], gpas: bool, after: bytes, size: int | None) -> None:
    """Which rows carry a page size is nowhere said; they are told apart by what follows."""
    names = ("first", "second", "third")
    addresses = (0, 0x100000000, 0xFEB00000) if gpas else (None, None, None)
    blocks = tuple(
        RamBlock(name, HUGE, page_size, gpa) for name, page_size, gpa in zip(names, huge, addresses, strict=True)
    )
    rows = (build.row(block.name, HUGE, block.page_size, block.gpa) for block in blocks)
    data = build.mem_size(3 * HUGE, *rows)
    state = Ram(gpa_listed=gpas, page_sizes_listed=True)
    assert body(data + after, state, size, listing=True)[0] == RamBlocks(0, data, 3 * HUGE, blocks)


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("data", "error", "at", "expected"),
    [
        (build.mem_size(0x1000, build.row("", 0x1000)), FramingError, 9, "a printable name"),
        (build.mem_size(0x1000, build.row("a\0b", 0x1000)), FramingError, 9, "a printable name"),
        (build.mem_size(0x2000, build.row("a", 0x1000), build.row("a", 0x1000)), FramingError, 18, "each RAM block"),
        (build.mem_size(0x1000, build.row("a", 0x1001)), FramingError, 8, "at most 0x1000 bytes"),
        (build.mem_size(0x2000, build.row("a", 0x1000), build.row("b", 0x2000)), FramingError, 18, "at most 0x1000"),
    ],
)  # fmt: skip
def test_broken_block_list(data: bytes, error: type[StreamError], at: int, expected: str, size: int | None) -> None:
    with raises_at(error, at, expected):
        body(data + build.EOS, Ram(), size, listing=True)


def test_too_many_blocks() -> None:
    rows = [build.row(f"{number:05}", 0) for number in range(4097)]
    with raises_at(LimitError, 8 + 4096 * len(rows[0]), "at most 4096 RAM blocks"):
        body(build.mem_size(0x1000, *rows), Ram(), listing=True)


def test_second_block_list() -> None:
    data = build.mem_size(0x1000, build.row("a", 0x1000))
    with raises_at(FramingError, len(data), "a RAM record's word"):
        body(data + data + build.EOS, Ram(), listing=True)


# --- any mixture


@dataclass(frozen=True)
class Record:
    raw: bytes
    block: str
    kind: str


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    """Records as QEMU may mix them: the block's name stands where the block changes, or anywhere else."""
    current = ""
    result: list[Record] = []
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(("normal", "zero", "zero", "zero", "xbzrle", "compressed", "multifd_flush")))
        if kind == "multifd_flush":
            result.append(Record(build.FLUSH, "", kind))
            continue
        block = draw(st.sampled_from(("pc.ram", "pc.ram", "pc.bios")))
        named = block if block != current or draw(st.booleans()) else None
        current = block
        offset = draw(st.integers(0, (1 << 52) - 1)) << 12
        data = draw(st.binary(max_size=9))
        raw = {
            "normal": build.page(offset, named, data or b"\0"),
            "zero": build.zero(offset, named),
            "xbzrle": build.xbzrle(offset, data, named),
            "compressed": build.compressed(offset, data, named),
        }[kind]
        result.append(Record(raw, block, kind))
    return result


@given(records(), st.sampled_from([None, 5, 11, 100, 4104]))
def test_any_mixture(mixture: list[Record], size: int | None) -> None:
    data = b"".join(record.raw for record in mixture)
    expected = [*mixture, Record(build.EOS, "", "")]
    told = body(data + build.EOS, None, size)
    stretches = [(block, list(group)) for block, group in itertools.groupby(expected, lambda record: record.block)]
    assert len(told) == len(stretches)
    for event, (block, group) in zip(told, stretches, strict=True):
        assert isinstance(event, RamRecords)
        assert (event.block, event.raw) == (block, b"".join(record.raw for record in group))
        for kind in ("normal", "zero", "xbzrle", "compressed", "multifd_flush"):
            assert getattr(event, kind) == sum(record.kind == kind for record in group)
