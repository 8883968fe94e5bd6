# SPDX-License-Identifier: GPL-2.0-or-later
"""Bodies of dirty bitmaps and of VFIO devices."""

from __future__ import annotations

import pytest

from qmpfilter.errors import FramingError, StreamError, TruncatedError, UnsupportedError
from qmpfilter.wire.events import Event
from qmpfilter.wire.framing import BE64
from qmpfilter.wire.iterables import VfioTag, body_reader
from tests.helpers import build
from tests.helpers.parse import drive, raises_at, rejoined

BITMAP = "dirty-bitmap"
VFIO = "0000:00:02.0/vfio"


def consumed(idstr: str, data: bytes, size: int | None = None) -> int:
    """Where the body ends; every byte before is told as this iterable's."""
    reader = body_reader(idstr, 0)
    result: tuple[list[Event], None, int] = drive(lambda feed: reader(feed, idstr), data, size)
    events, _, end = result
    assert rejoined(events) == data[:end]
    assert {getattr(event, "idstr", None) for event in events} == {idstr}
    return end


def tag(low: int, *sized: bytes) -> bytes:
    return BE64.pack(0xFFFFFFFFEF100000 + low) + b"".join(BE64.pack(len(data)) + data for data in sized)


NAMES = build.label("disk0") + build.label("map")
BODIES = [
    # dirty bitmaps: what follows the flags
    (BITMAP, b"\x01"),
    (BITMAP, b"\x08" + build.label("disk0") + b"\x01"),
    (BITMAP, b"\x04" + build.label("map") + b"\x01"),
    (BITMAP, b"\x08\0" + b"\x01"),
    (BITMAP, b"\x0c" + NAMES + b"\x20" + b"\x01"),
    (BITMAP, b"\x1c" + NAMES + build.be((4, 65536), (1, 3)) + b"\x01"),
    (BITMAP, b"\x40" + build.be((8, 0), (4, 8), (8, 4)) + b"\x01\x7e\xff\x01" + b"\x01"),
    (BITMAP, b"\x42" + build.be((8, 0), (4, 8)) + b"\x01"),
    (BITMAP, b"\x02" + b"\x01"),
    (BITMAP, b"\x7c" + NAMES + build.be((4, 1), (1, 0), (8, 0), (4, 8), (8, 300)) + bytes(300) + b"\x20\x01"),
    # VFIO: each tag that ends a body, and data before
    (VFIO, tag(3) + tag(1)),
    (VFIO, tag(1)),
    (VFIO, tag(5)),
    (VFIO, tag(6)),
    (VFIO, tag(4, b"") + tag(1)),
    (VFIO, tag(4, tag(1)) + tag(4, bytes(300)) + tag(5)),
]


@pytest.mark.parametrize("size", [None, 1, 3, 64])
@pytest.mark.parametrize(("idstr", "body"), BODIES)
def test_body_ends_by_itself(idstr: str, body: bytes, size: int | None) -> None:
    assert consumed(idstr, body + b"\x7e\0\0\0\1", size) == len(body)


@pytest.mark.parametrize(("idstr", "body"), BODIES)
def test_cut_anywhere(idstr: str, body: bytes) -> None:
    for cut in range(len(body)):
        with pytest.raises(TruncatedError) as caught:
            consumed(idstr, body[:cut])
        assert caught.value.offset <= cut


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("idstr", "before", "wrong", "at", "expected"),
    [
        (BITMAP, b"\x20", b"\x21", 0, "without other flags than EOS"),
        (BITMAP, b"\x20", b"\x81\x00", 0, "known dirty bitmap flags"),
        (BITMAP, b"", b"\x80\x7f", 0, "without other flags than EOS"),
        (BITMAP, b"", b"\x80\x80\0\0", 0, "known dirty bitmap flags"),
        (VFIO, tag(3), tag(2), 0, "START, PART or END"),
        (VFIO, tag(4, b"data"), tag(0), 0, "START, PART or END"),
        (VFIO, b"", tag(7), 0, "START, PART or END"),
        (VFIO, b"", bytes(8), 0, "START, PART or END"),
    ],
)
def test_refused(idstr: str, before: bytes, wrong: bytes, at: int, expected: str, size: int | None) -> None:
    with raises_at(FramingError, len(before) + at, expected):
        consumed(idstr, before + wrong, size)


@pytest.mark.parametrize(
    ("idstr", "body", "error", "at"),
    [
        (BITMAP, b"\x40" + build.be((8, 0), (4, 8), (8, 2**64 - 1)) + b"abc", TruncatedError, 21 + 3),
        (VFIO, tag(4) + build.be((8, 2**64 - 1)) + b"abc", TruncatedError, 16 + 3),
    ],
)
def test_cut_in_bulk_is_told_where_the_input_ends(idstr: str, body: bytes, error: type[StreamError], at: int) -> None:
    with raises_at(error, at, f"{2**64 - 4} more bytes of {idstr}"):
        consumed(idstr, body)


@pytest.mark.parametrize("idstr", ["block", "spapr/htab", "vfio", "dirty-bitmap2", "slirp"])
def test_unknown_iterable(idstr: str) -> None:
    with raises_at(UnsupportedError, 77, "an iterable that can be delimited"):
        body_reader(idstr, 77)


def test_vfio_tags() -> None:
    assert [(each.name, each.value & 0xFFFF) for each in VfioTag] == [
        ("END_OF_STATE", 1),
        ("DEV_CONFIG_STATE", 2),
        ("DEV_SETUP_STATE", 3),
        ("DEV_DATA_STATE", 4),
        ("DEV_INIT_DATA_SENT", 5),
        ("DEV_CONFIG_LOAD_READY", 6),
    ]
    assert {each.value >> 16 for each in VfioTag} == {0xFFFFFFFFEF10}
