# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts: rows that fit, and those that do not."""

from __future__ import annotations

import struct

import construct
import pytest
from construct import Array, Bytes, Int8ub, Int16sb, Int16ub, Int32ub, Struct

from qmpfilter.errors import BugError
from qmpfilter.layout import Field, Layout

A = Field(0, "a", Int16ub, "first")
PAIR = Layout("pair", "a test", [A, Field(2, "b", Int32ub)])
GAPPY = Layout("gappy", "a test", [A, Field(6, "c", Int16sb)], size=12, gaps=True)


@pytest.mark.parametrize(
    ("rows", "size", "gaps", "words"),
    [
        ([A, Field(1, "b", Int8ub)], None, True, "b: declared at 0x1, the row before ends at 0x2"),
        ([A, Field(3, "b", Int8ub)], None, False, "b: declared at 0x3, the row before ends at 0x2"),
        ([Field(1, "b", Int8ub)], None, False, "b: declared at 0x1, the row before ends at 0x0"),
        ([A], 1, False, "fields end at 0x2, beyond the size 0x1"),
    ],
)
def test_rows_must_fit(rows: list[Field], size: int | None, gaps: bool, words: str) -> None:
    with pytest.raises(BugError, match=words):
        Layout("wrong", "a test", rows, size=size, gaps=gaps)


def test_offsets() -> None:
    assert (PAIR.size, PAIR.offset("b"), PAIR.span("b")) == (6, 2, slice(2, 6))
    assert repr(PAIR) == "<Layout pair 0x6 bytes, 2 fields>"


def test_parse_and_build() -> None:
    assert PAIR.parse(b"\1\2\3\4\5\6") == {"a": 0x0102, "b": 0x03040506}
    assert PAIR.build({"a": 0x0102, "b": 0x03040506}) == b"\1\2\3\4\5\6"


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_parse_takes_any_buffer_and_ignores_the_rest(wrap: type[bytes]) -> None:
    assert PAIR.parse(wrap(b"\0\1\0\0\0\2rest")) == {"a": 1, "b": 2}


def test_parse_needs_all_bytes() -> None:
    with pytest.raises(BugError, match="0x6 bytes needed, 0x5 given"):
        PAIR.parse(bytes(5))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"a": 1}, KeyError),
        ({"a": 1 << 16, "b": 0}, construct.ConstructError),
        ({"a": -1, "b": 0}, construct.ConstructError),
    ],
)
def test_build_refuses_what_does_not_fit(values: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        PAIR.build(values)


def test_gaps_are_skipped_and_built_as_zeros() -> None:
    assert GAPPY.parse(b"\0\1xxxx\xff\xffxxxx") == {"a": 1, "c": -1}
    assert GAPPY.build({"a": 1, "c": -1}) == b"\0\1\0\0\0\0\xff\xff\0\0\0\0"


def test_nested_values_are_plain() -> None:
    point = Struct("x" / Int8ub, "y" / Int8ub)
    layout = Layout("nested", "a test", [Field(0, "points", Array(2, point)), Field(4, "rest", Bytes(2))])
    values = {"points": [{"x": 1, "y": 2}, {"x": 3, "y": 4}], "rest": b"ab"}
    assert layout.parse(b"\1\2\3\4ab") == values
    assert type(layout.parse(b"\1\2\3\4ab")["points"]) is list
    assert layout.build(values) == b"\1\2\3\4ab"


def test_signs() -> None:
    assert [GAPPY.is_signed("a"), GAPPY.is_signed("c")] == [False, True]


def test_single_fields() -> None:
    data = bytearray(8)
    PAIR.put(data, "b", 0x01020304, base=2)
    assert data == b"\0\0\0\0\1\2\3\4"
    assert PAIR.get(data, "b", base=2) == 0x01020304
    with pytest.raises(struct.error):
        PAIR.put(data, "a", 1 << 16)
