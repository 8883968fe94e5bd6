# SPDX-License-Identifier: GPL-2.0-or-later
"""Native svm2 as a struct and as a QEMU subsection: the same state, and nothing that contradicts itself."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given

from qmpfilter.errors import BugError, RecordError
from qmpfilter.layout import Layout
from qmpfilter.svm import annex, native
from qmpfilter.svm.svm2 import Svm2State, Validity
from qmpfilter.wire import cpu
from tests.svm.test_annex import STATE, STATES

BLOB = native.encode_blob(STATE)
HEADER, CHILD = native.encode_subsections(STATE)


@given(state=STATES)
def test_a_struct_gives_the_state_back(state: Svm2State) -> None:
    blob = native.encode_blob(state)
    assert len(blob) == native.SIZE == 0x2080
    assert native.decode_blob(blob) == state


@given(state=STATES)
def test_subsections_give_the_state_back(state: Svm2State) -> None:
    header, child = native.encode_subsections(state)
    assert (len(header), len(child)) == (8, 0x2048)
    assert native.decode_subsections(header, child) == state


@given(state=STATES)
def test_annex_to_native_to_annex_is_the_identity(state: Svm2State) -> None:
    page = annex.encode(state)
    for through in (
        native.decode_blob(native.encode_blob(state)),
        native.decode_subsections(*native.encode_subsections(state)),
    ):
        assert annex.encode(through) == page


@pytest.mark.parametrize(
    ("layout", "data"), [(native.BLOB, BLOB), (native.SUBSECTION, CHILD)], ids=lambda item: getattr(item, "name", "")
)
def test_the_layout_reads_what_the_codec_wrote(layout: Layout, data: bytes) -> None:
    parsed = layout.parse(data)
    assert (parsed["vmcb_pa"], parsed["validity"], parsed["svm2_flags"], parsed["producer"]) == (
        0x3F_7000,
        0x82,
        1,
        1,
    )
    assert (parsed["vmcb12_save"], parsed["l1_save"]) == (STATE.vmcb12_save, STATE.l1_save)
    assert layout.build(parsed) == data


def test_items_of_the_struct_stand_where_the_format_puts_them() -> None:
    assert BLOB[:0x10] == bytes.fromhex("0101 0280 80200000 00703f0000000000")
    # STATE's save area counts down, so this is what it has as g_pat.
    assert BLOB[0x10:0x18] == STATE.vmcb12_save[0x268:0x270]
    assert BLOB[0x18:0x28] == bytes.fromhex("8200000000000000 01000000 0100 0100")
    assert BLOB[0x28:0x30] == bytes.fromhex("3300058000000000")
    assert BLOB[0x50:0x80] == bytes(0x30)
    assert BLOB[0x80:0x1080] == STATE.l1_save + bytes(0xD00)
    assert BLOB[0x1080:] == STATE.vmcb12_control + STATE.vmcb12_save + bytes(0x900)


def test_items_of_the_subsections_are_big_endian() -> None:
    assert bytes.fromhex("0101 8002 00002080") == HEADER
    assert (
        CHILD[:0x18] == bytes.fromhex("00000000003f7000") + STATE.vmcb12_save[0x268:0x270][::-1] + bytes(7) + b"\x82"
    )
    assert CHILD[0x18:0x20] == bytes.fromhex("00000001 0001 0001")
    assert CHILD[0x40:0x48] == bytes.fromhex("0007040600070406")
    assert CHILD[0x48:0x1048] == STATE.l1_save + bytes(0xD00)


def test_gpat_is_there_only_where_it_is_l2s_own() -> None:
    shared = dataclasses.replace(STATE, validity=Validity(0))
    assert native.encode_blob(shared)[0x10:0x18] == bytes(8)
    assert native.decode_blob(native.encode_blob(shared)) == shared


# Field, bytes that differ from STATE's (little-endian), and the words of the error.
DAMAGE = [
    ("flags", 0x100, "GUEST_MODE"),
    ("flags", 0x105, "GUEST_MODE"),
    ("flags", 0x8101, "GUEST_MODE"),
    ("format", 0x1, "format 0x8002"),
    ("size", 0x1080, "size 0x2080"),
    ("vmcb_pa", 0x3F_7008, "the address of a page"),
    ("gpat", 0x1, "as validity and VMCB12's g_pat say"),
    ("validity", 0x182, "validity within 0xff"),
    ("validity", 0x80, "as validity and VMCB12's g_pat say"),
    ("svm2_flags", 0x4, "flags within 0x3"),
    ("reserved_header", b"\1", "zeros in reserved_header"),
    ("reserved_l1", b"\1", "zeros in reserved_l1"),
    ("reserved_vmcb12", b"\1", "zeros in reserved_vmcb12"),
]


@pytest.mark.parametrize(("name", "value", "words"), DAMAGE)
def test_damage_of_the_struct_is_an_error_at_its_place(name: str, value: int | bytes, words: str) -> None:
    with pytest.raises(RecordError, match=words) as error:
        native.decode_blob(damaged(native.BLOB, BLOB, name, value))
    at = error.value.offset
    assert at == native.BLOB.offset("gpat" if "g_pat" in words else name)


@pytest.mark.parametrize(("name", "value", "words"), [row for row in DAMAGE if row[0] != "reserved_header"])
def test_damage_of_the_subsections_is_an_error_at_its_place(name: str, value: int | bytes, words: str) -> None:
    parent = cpu.NESTED_STATE.layout
    header = damaged(parent, HEADER, name, value)
    child = damaged(native.SUBSECTION, CHILD, name, value)
    with pytest.raises(RecordError, match=words) as error:
        native.decode_subsections(header, child)
    layout = parent if name in parent.fields else native.SUBSECTION
    assert error.value.offset == layout.offset("gpat" if "g_pat" in words else name)


def damaged(layout: Layout, data: bytes, name: str, value: int | bytes) -> bytes:
    """The data with a field replaced, where the layout has it."""
    built = bytearray(data)
    if name in layout.fields:
        if isinstance(value, int):
            layout.put(built, name, value)
        else:
            start = layout.offset(name)
            built[start : start + len(value)] = value
    return bytes(built)


@pytest.mark.parametrize("blob", [b"", BLOB[:-1], BLOB + b"\0"])
def test_a_struct_of_another_size_is_an_error(blob: bytes) -> None:
    with pytest.raises(RecordError):
        native.decode_blob(blob)


@pytest.mark.parametrize(("header", "child"), [(HEADER[:-1], CHILD), (HEADER, CHILD + b"\0")])
def test_payloads_of_another_size_are_bugs(header: bytes, child: bytes) -> None:
    with pytest.raises(BugError):
        native.decode_subsections(header, child)
