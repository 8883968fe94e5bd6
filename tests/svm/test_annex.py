# SPDX-License-Identifier: GPL-2.0-or-later
"""The svm2 record in the legacy page: what is carried, and that damage is never taken for legacy state."""

from __future__ import annotations

import dataclasses
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpfilter.errors import BugError, RecordError
from qmpfilter.svm import annex
from qmpfilter.svm.svm2 import L1Visible, Producer, Svm2Flags, Svm2State, Validity

VMCB_PA = 0x3F_7000
U64 = st.integers(0, (1 << 64) - 1)
SAVES = st.binary(min_size=0x300, max_size=0x300)

STATES = st.builds(
    Svm2State,
    run_pending=st.booleans(),
    gif=st.booleans(),
    vmcb_pa=st.integers(0, (1 << 40) - 1).map(lambda page: page << 12),
    l1_visible=st.builds(L1Visible, cr0=U64, cr3=U64, cr4=U64, efer=U64, pat=U64),
    l1_save=SAVES,
    vmcb12_control=st.binary(min_size=0x400, max_size=0x400),
    vmcb12_save=SAVES,
    validity=st.integers(0, 0xFF).map(Validity),
    flags=st.integers(0, 3).map(Svm2Flags),
    producer=st.integers(0, 0xFFFF),
    producer_version=st.integers(0, 0xFFFF),
)
STATE = Svm2State(
    run_pending=False,
    gif=True,
    vmcb_pa=VMCB_PA,
    l1_visible=L1Visible(0x8005_0033, 0x40_0000, 0x4_1220, 0x1D01, 0x0007_0406_0007_0406),
    l1_save=bytes(range(256)) * 3,
    vmcb12_control=bytes(0x400),
    vmcb12_save=bytes(reversed(range(256))) * 3,
    validity=Validity.G_PAT | Validity.SPEC_CTRL,
    flags=Svm2Flags.CONVERTED,
    producer=Producer.QMPFILTER,
    producer_version=1,
)


def decoded(page: bytes, vmcb_pa: int = VMCB_PA) -> Svm2State | None:
    return annex.decode(page, vmcb_pa, run_pending=False, gif=True)


def sealed(page: bytes, offset: int, new: bytes) -> bytes:
    """The page with bytes replaced and the record's own CRC made right again."""
    changed = bytearray(page)
    changed[offset : offset + len(new)] = new
    changed[0xCA4:0xCA8] = bytes(4)
    changed[0xCA4:0xCA8] = zlib.crc32(changed[0xC80:]).to_bytes(4, "little")
    return bytes(changed)


@given(state=STATES)
def test_decode_is_the_inverse_of_encode(state: Svm2State) -> None:
    page = annex.encode(state)
    assert len(page) == 0x1000
    assert annex.decode(page, state.vmcb_pa, run_pending=state.run_pending, gif=state.gif) == state


def test_items_stand_where_the_format_puts_them() -> None:
    page = annex.encode(STATE)
    assert page[0xC80:0xC8C] == b"SVM2" + bytes.fromhex("0200 0000 80030000")
    assert page[0xC8C:0xCA0] == bytes.fromhex("01000000 00703f0000000000 8200000000000000")
    assert page[0xCA0:0xCA4] == zlib.crc32(page[:0xC80]).to_bytes(4, "little")
    assert page[0xCA8:0xCAC] == bytes.fromhex("0100 0100")
    assert page[0xCAC:0xCC0] == bytes(0x14)
    assert page[0xCC0:0xCC8] == bytes.fromhex("3300058000000000")
    assert page[0xCE8:0xD00] == bytes(0x18)
    assert page[0xD00:] == STATE.vmcb12_save
    assert (page[:0x400], page[0x400:0x700], page[0x700:0xC80]) == (STATE.vmcb12_control, STATE.l1_save, bytes(0x580))


def test_strip_gives_the_legacy_page() -> None:
    page = annex.encode(STATE)
    assert annex.strip(page) == page[:0xC80] + bytes(0x380)
    assert decoded(annex.strip(page)) is None


@pytest.mark.parametrize("name", annex.RECORD.fields)
def test_damage_of_any_field_is_an_error(name: str) -> None:
    page = bytearray(annex.encode(STATE))
    at = 0xC80 + annex.RECORD.offset(name)
    page[at] ^= 0x10
    if name == "magic":
        assert decoded(bytes(page)) is None
        return
    with pytest.raises(RecordError) as error:
        decoded(bytes(page))
    # major and length are looked at first; of all else the CRC tells that it is damaged.
    assert error.value.offset == (at if name in ("major", "length") else 0xCA4)


@pytest.mark.parametrize("offset", [0, 0x10, 0x578, 0x700, 0xC7F])
def test_damage_of_what_the_record_describes_is_an_error(offset: int) -> None:
    page = bytearray(annex.encode(STATE))
    page[offset] ^= 0x10
    with pytest.raises(RecordError, match="base_crc"):
        decoded(bytes(page))


@pytest.mark.parametrize(
    ("offset", "new", "named"),
    [
        (0xC84, b"\x03\0", "major 0x2"),
        (0xC88, b"\0\4\0\0", "length 0x380"),
        (0xC90, b"\0\0\0\0", "vmcb_pa 0x3f7000"),
        (0xCA0, b"\0\0\0\0", "base_crc"),
        (0x10, b"\xff", "base_crc"),
    ],
)
def test_the_error_names_the_field_and_its_place(offset: int, new: bytes, named: str) -> None:
    with pytest.raises(RecordError, match=named) as error:
        decoded(sealed(annex.encode(STATE), offset, new))
    assert error.value.offset == (offset if offset >= 0xC80 else 0xCA0)


def test_a_record_of_another_vmcb12_is_an_error() -> None:
    with pytest.raises(RecordError, match="vmcb_pa 0x1000 in"):
        decoded(annex.encode(STATE), 0x1000)


def test_a_page_of_another_size_is_a_bug() -> None:
    with pytest.raises(BugError):
        decoded(annex.encode(STATE)[:-1])


def test_a_vmcb_pa_that_is_no_page_is_an_error() -> None:
    page = sealed(annex.encode(STATE), 0xC90, b"\1")
    with pytest.raises(RecordError, match="the address of a page"):
        decoded(page, VMCB_PA + 1)


# What minor 0 does not define, in each part of the record that has room.
UNDEFINED = pytest.mark.parametrize(
    ("offset", "new"),
    [(0xC8E, b"\x01"), (0xC9F, b"\x80"), (0xCAC, b"\x01"), (0xCE8, b"\x01"), (0xCFF, b"\x01")],
    ids=["flags", "validity", "reserved", "reserved", "reserved"],
)


@UNDEFINED
def test_what_a_later_minor_adds_is_ignored(offset: int, new: bytes) -> None:
    later = sealed(annex.encode(STATE), 0xC86, b"\x01\0")
    assert decoded(later) == STATE
    assert decoded(sealed(later, offset, new)) == STATE


@UNDEFINED
def test_what_minor_0_does_not_define_is_an_error(offset: int, new: bytes) -> None:
    with pytest.raises(RecordError, match="in the svm2 record") as error:
        decoded(sealed(annex.encode(STATE), offset, new))
    assert error.value.offset in (0xC8C, 0xC98, 0xCAC, 0xCE8)


@pytest.mark.parametrize("change", [{"l1_save": b""}, {"vmcb12_control": bytes(0x300)}, {"vmcb_pa": 0x1001}])
def test_a_state_that_cannot_be_is_a_bug(change: dict[str, bytes | int]) -> None:
    with pytest.raises(BugError):
        dataclasses.replace(STATE, **change)  # type: ignore[arg-type]  # each has its own type
