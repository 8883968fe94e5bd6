# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts: declared once, then parsed, built, read and written field by field."""

from __future__ import annotations

import struct

import pytest
from construct import Array, Bytes, Int8ub, Int16ub, Int32sb, Struct

from qmpfilter.errors import BugError
from qmpfilter.layout import Field, Layout

SAMPLE = Layout(
    "sample",
    "made up for this test",
    [
        Field(0, "number", Int16ub, "big-endian"),
        Field(2, "signed", Int32sb),
        Field(8, "pairs", Array(2, Struct("a" / Int8ub, "b" / Int8ub))),
        Field(12, "opaque", Bytes(2)),
    ],
    size=16,
    gaps=True,
)
WIRE = bytes.fromhex("0102 fffffffe 0000 0304 0506 6162 0000".replace(" ", ""))
VALUES = {"number": 0x0102, "signed": -2, "pairs": [{"a": 3, "b": 4}, {"a": 5, "b": 6}], "opaque": b"ab"}


def test_parse_and_build_are_inverse() -> None:
    assert SAMPLE.parse(WIRE) == VALUES
    assert SAMPLE.build(VALUES) == WIRE


def test_undeclared_bytes_are_built_as_zeros() -> None:
    dirty = bytearray(WIRE)
    dirty[6] = dirty[15] = 0xEE
    assert SAMPLE.build(SAMPLE.parse(dirty)) == WIRE


def test_single_fields_are_read_and_written_in_place() -> None:
    data = bytearray(b"??" + WIRE)
    assert SAMPLE.get(data, "signed", 2) == -2
    SAMPLE.put(data, "number", 0xABCD, 2)
    assert data == b"??\xab\xcd" + WIRE[2:]
    with pytest.raises(struct.error):
        SAMPLE.put(data, "number", 0x10000, 2)


def test_offsets_spans_and_signs() -> None:
    assert (SAMPLE.size, SAMPLE.offset("pairs"), SAMPLE.span("opaque")) == (16, 8, slice(12, 14))
    assert [name for name in SAMPLE.fields if SAMPLE.is_signed(name)] == ["signed"]


@pytest.mark.parametrize(
    ("fields", "size", "gaps"),
    [
        ([Field(0, "a", Int16ub), Field(1, "b", Int16ub)], None, True),
        ([Field(0, "a", Int16ub), Field(4, "b", Int16ub)], None, False),
        ([Field(0, "a", Int16ub)], 1, False),
    ],
    ids=["overlap", "gap", "too long"],
)
def test_rows_that_do_not_fit_are_a_bug(fields: list[Field], size: int | None, gaps: bool) -> None:
    with pytest.raises(BugError):
        Layout("bad", "made up", fields, size=size, gaps=gaps)


def test_too_few_bytes_are_a_bug() -> None:
    with pytest.raises(BugError, match="0x10 bytes needed, 0xf given"):
        SAMPLE.parse(WIRE[:15])
