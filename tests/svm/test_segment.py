# SPDX-License-Identifier: GPL-2.0-or-later
"""Segment attributes in both packings, and their description."""

from __future__ import annotations

import pytest

from qmpfilter.svm.segment import ATTRIB_MASK, Segment, attrib_to_flags, flags_to_attrib
from qmpfilter.svm.vmcb import PAGE_SIZE, SAVE, SAVE_OFFSET
from qmpfilter.wire import cpu
from tests.svm.states import LIVE_ATTRIBS, block, page

# Attribute bit and QEMU's DESC_*_SHIFT, each on its own.
BITS = {0: 8, 1: 9, 2: 10, 3: 11, 4: 12, 5: 13, 6: 14, 7: 15, 8: 20, 9: 21, 10: 22, 11: 23}


@pytest.mark.parametrize(("in_attrib", "in_flags"), BITS.items())
def test_each_bit_has_its_place(in_attrib: int, in_flags: int) -> None:
    assert attrib_to_flags(1 << in_attrib) == 1 << in_flags
    assert flags_to_attrib(1 << in_flags) == 1 << in_attrib


def test_all_4096_patterns_go_both_ways() -> None:
    for attrib in range(ATTRIB_MASK + 1):
        assert flags_to_attrib(attrib_to_flags(attrib)) == attrib


def test_all_4096_flag_patterns_go_both_ways() -> None:
    for pattern in range(ATTRIB_MASK + 1):
        flags = sum(1 << place for number, place in enumerate(BITS.values()) if pattern >> number & 1)
        assert attrib_to_flags(flags_to_attrib(flags)) == flags


def test_foreign_bits_are_dropped() -> None:
    assert attrib_to_flags(0xF000) == 0
    assert flags_to_attrib(0xFF0F_00FF) == 0


@pytest.mark.parametrize("name", ["fs", "gs", "ldtr", "tr"])
def test_both_sources_give_the_same_segment(name: str) -> None:
    from_page = Segment.from_save(page(), name, SAVE_OFFSET)
    assert from_page == Segment.from_cpu(block(), name)
    assert from_page.attrib == LIVE_ATTRIBS[name]


@pytest.mark.parametrize("name", ["gdtr", "idtr"])
def test_descriptor_tables_are_read_from_both(name: str) -> None:
    data = bytearray(PAGE_SIZE)
    SAVE.put(data, f"{name}_base", 0x5000, SAVE_OFFSET)
    SAVE.put(data, f"{name}_limit", 0x7F, SAVE_OFFSET)
    in_block = {"gdtr": "gdt", "idtr": "idt"}[name]
    fields = bytearray(cpu.BLOCK.size)
    cpu.BLOCK.put(fields, f"{in_block}_base", 0x5000)
    cpu.BLOCK.put(fields, f"{in_block}_limit", 0x7F)
    expected = Segment(selector=0, base=0x5000, limit=0x7F, attrib=0)
    assert Segment.from_save(data, name, SAVE_OFFSET) == expected
    assert Segment.from_cpu(fields, name) == expected


@pytest.mark.parametrize(
    ("attrib", "text"),
    [
        (0xA9B, "code r-x accessed, DPL 0, P L G"),
        (0xCFB, "code r-x accessed, DPL 3, P D/B G"),
        (0x49C, "code --x conforming, DPL 0, P D/B"),
        (0xC93, "data rw- accessed, DPL 0, P D/B G"),
        (0x194, "data r-- expand-down, DPL 0, P AVL"),
        (0x08B, "busy TSS, DPL 0, P"),
        (0x089, "available TSS, DPL 0, P"),
        (0x082, "LDT, DPL 0, P"),
        (0x08C, "system type 0xc, DPL 0, P"),
        (0x000, "null, DPL 0"),
    ],
)
def test_description(attrib: int, text: str) -> None:
    segment = Segment(selector=0x10, base=0x1000, limit=0xFFFF, attrib=attrib)
    assert str(segment) == f"0010 base 0x1000 limit 0xffff attrib {attrib:03x} ({text})"
