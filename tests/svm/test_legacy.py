# SPDX-License-Identifier: GPL-2.0-or-later
"""Legacy nested state as two subsections carry it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpfilter.errors import BugError
from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L1, SIZE_L2, Era, LegacyState, flag_names
from qmpfilter.svm.vmcb import CONTROL, PAGE_SIZE, SAVE, SAVE_OFFSET
from tests.svm.states import VMCB_PA, page

HEADER = bytes.fromhex("0101 0001 00001080")


def state(*, flags: int = 0x101, vmcb_page: bytes | None = None) -> LegacyState:
    return LegacyState(flags=flags, format=FORMAT_SVM, size=SIZE_L2, vmcb_pa=VMCB_PA, page=vmcb_page)


def test_sizes_are_the_kernels() -> None:
    assert (SIZE_L1, SIZE_L2) == (128, 4224)


def test_subsections_are_big_endian() -> None:
    read = LegacyState.from_subsections(HEADER, VMCB_PA.to_bytes(8, "big") + page())
    assert read == state(vmcb_page=page())


def test_no_child_means_no_page() -> None:
    read = LegacyState.from_subsections(bytes.fromhex("0100 0001 00000080"), None)
    assert (read.flags, read.size, read.vmcb_pa, read.page) == (0x100, 0x80, 0, None)


@pytest.mark.parametrize(
    ("flags", "guest_mode", "run_pending", "gif"),
    [
        (0x000, False, False, False),
        (0x100, False, False, True),
        (0x001, True, False, False),
        (0x101, True, False, True),
        (0x103, True, True, True),
    ],
)
def test_flags(flags: int, guest_mode: bool, run_pending: bool, gif: bool) -> None:
    read = state(flags=flags)
    assert (read.guest_mode, read.run_pending, read.gif) == (guest_mode, run_pending, gif)


def test_flag_names() -> None:
    assert flag_names(0) == []
    assert flag_names(0x810F) == [
        "GUEST_MODE", "RUN_PENDING", "EVMCS", "MTF_PENDING", "GIF_SET", "bit 15",
    ]  # fmt: skip


def test_areas() -> None:
    read = state(vmcb_page=page(control={"asid": 7}, l1={"rip": 0x1234}))
    assert (len(read.control), len(read.save)) == (CONTROL.size, SAVE.size)
    assert CONTROL.get(read.control, "asid") == 7
    assert SAVE.get(read.save, "rip") == 0x1234


@pytest.mark.parametrize("area", ["control", "save"])
def test_areas_need_a_page(area: str) -> None:
    with pytest.raises(BugError):
        getattr(state(), area)


@pytest.mark.parametrize(
    ("header", "child"),
    [(HEADER[:7], None), (HEADER + b"\0", None), (HEADER, b""), (HEADER, bytes(4103)), (HEADER, bytes(4105))],
)
def test_wrong_lengths_are_bugs(header: bytes, child: bytes | None) -> None:
    with pytest.raises(BugError):
        LegacyState.from_subsections(header, child)


@pytest.mark.parametrize(
    ("vmcb_page", "era"),
    [
        (page(), Era.VMCB01),
        (bytes(PAGE_SIZE), Era.HSAVE),
        (None, Era.UNKNOWN),
        (page(l1={"tr_attrib": 0}), Era.UNKNOWN),
    ],
)
def test_era(vmcb_page: bytes | None, era: Era) -> None:
    assert state(vmcb_page=vmcb_page).era is era


@pytest.mark.parametrize("name", ["fs_base", "gs_attrib", "ldtr_limit", "tr_selector", "cpl", "dr6", "g_pat"])
def test_hsave_needs_all_of_them_zero(name: str) -> None:
    built = bytearray(PAGE_SIZE)
    SAVE.put(built, name, 1, SAVE_OFFSET)
    assert state(vmcb_page=bytes(built)).era is Era.UNKNOWN


@pytest.mark.parametrize("name", ["dr6", "g_pat", "cpl"])
def test_vmcb01_is_told_by_tr_alone(name: str) -> None:
    assert state(vmcb_page=page(l1={name: 0})).era is Era.VMCB01


@given(
    header=st.binary(min_size=8, max_size=8),
    child=st.none() | st.randoms(use_true_random=False).map(lambda r: r.randbytes(4104)),
)
def test_any_bytes_are_accepted(header: bytes, child: bytes | None) -> None:
    read = LegacyState.from_subsections(memoryview(header), child)
    assert read.era in Era
    assert read.flags == int.from_bytes(header[:2], "big")
    assert child is None or (read.vmcb_pa.to_bytes(8, "big") + (read.page or b"")) == child
