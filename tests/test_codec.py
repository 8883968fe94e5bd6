# SPDX-License-Identifier: GPL-2.0-or-later
"""Many fields at once: the same values as the layout's own, for every layout that is read so."""

from __future__ import annotations

from random import Random

import construct
import pytest
from construct import Int8ub, Int16ub, Int16ul
from hypothesis import given
from hypothesis import strategies as st

from qmpfilter.errors import BugError
from qmpfilter.layout import Codec, Field, Layout
from qmpfilter.svm.annex import RECORD
from qmpfilter.svm.native import BLOB, SUBSECTION
from qmpfilter.svm.vmcb import CONTROL, SAVE
from qmpfilter.wire import cpu

SMALL = Layout(
    "small", "", [Field(0, "a", Int8ub), Field(4, "b", construct.Bytes(3)), Field(7, "c", Int16ub)], gaps=True
)
LAYOUTS = [CONTROL, SAVE, RECORD, BLOB, SUBSECTION, cpu.BLOCK]


@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.name for layout in LAYOUTS])
@given(seed=st.integers(0))
def test_integers_are_those_of_the_layout(layout: Layout, seed: int) -> None:
    data = Random(seed).randbytes(layout.size)
    codec = Codec(layout)
    assert dict(zip(codec.names, codec.unpack(data), strict=True)) == {
        name: layout.get(data, name) for name in codec.names
    }
    fields = codec.read(b".." + data, 2)
    assert {name: getattr(fields, name) for name in codec.names} == {
        name: layout.get(data, name) for name in codec.names
    }


def test_a_whole_layout_is_packed_with_zeros_between() -> None:
    codec = Codec(SMALL, SMALL.fields)
    assert codec.names == ("a", "b", "c")
    assert codec.pack(1, b"xyz", 2) == b"\1\0\0\0xyz\0\2"
    assert codec.unpack(b"..\1\0\0\0xyz\0\2", 2) == (1, b"xyz", 2)


def test_chosen_fields_keep_the_order_of_the_layout() -> None:
    assert Codec(SMALL, ("c", "a")).unpack(b"\1\0\0\0xyz\0\2") == (1, 2)


def test_an_unknown_attribute_is_an_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = Codec(SMALL).read(bytes(9)).nothing


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (SMALL, ("a", "d")),
        (Layout("mixed", "", [Field(0, "a", Int16ub), Field(2, "b", Int16ul)]), None),
        (Layout("array", "", [Field(0, "a", construct.Array(2, Int8ub)), Field(2, "b", Int8ub)]), ("a", "b")),
    ],
)
def test_what_no_codec_can_do_is_a_bug(layout: Layout, names: tuple[str, ...] | None) -> None:
    with pytest.raises(BugError):
        Codec(layout, names)
