# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCB layouts, bit names, intercepts and event injection."""

from __future__ import annotations

from typing import Any

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpfilter.layout import Layout
from qmpfilter.svm.vmcb import (
    CONTROL,
    INTERCEPTS,
    PAGE_SIZE,
    REGISTERS,
    SAVE,
    SAVE_OFFSET,
    Clean,
    EventInjection,
    IntCtl,
    MiscCtl,
    RegisterClass,
    intercepts,
    named_bits,
    registers,
    save_fields,
)

# Offsets in the page and widths that the APM's tables and everybody's memory agree on.
PAGE_OFFSETS = {
    "intercept_cr": (0x000, 4), "intercept_exception": (0x008, 4), "intercept_word4": (0x010, 4),
    "iopm_base_pa": (0x040, 8), "msrpm_base_pa": (0x048, 8), "tsc_offset": (0x050, 8), "asid": (0x058, 4),
    "tlb_ctl": (0x05C, 1), "int_ctl": (0x060, 4), "int_state": (0x068, 4), "exit_code": (0x070, 8),
    "exit_int_info": (0x088, 4), "misc_ctl": (0x090, 8), "event_inj": (0x0A8, 4), "nested_cr3": (0x0B0, 8),
    "misc_ctl2": (0x0B8, 8), "clean": (0x0C0, 4), "next_rip": (0x0C8, 8), "insn_bytes": (0x0D1, 15),
    "vmsa_pa": (0x108, 8), "hv_vp_id": (0x3E4, 4), "hv_reserved": (0x3F8, 8),
}  # fmt: skip
SAVE_PAGE_OFFSETS = {
    "es_selector": (0x400, 2), "cs_attrib": (0x412, 2), "ss_limit": (0x424, 4), "fs_base": (0x448, 8),
    "gdtr_limit": (0x464, 4), "ldtr_selector": (0x470, 2), "idtr_base": (0x488, 8), "tr_attrib": (0x492, 2),
    "cpl": (0x4CB, 1), "efer": (0x4D0, 8), "cr4": (0x548, 8), "cr3": (0x550, 8), "cr0": (0x558, 8),
    "dr7": (0x560, 8), "dr6": (0x568, 8), "rflags": (0x570, 8), "rip": (0x578, 8), "rsp": (0x5D8, 8),
    "rax": (0x5F8, 8), "star": (0x600, 8), "kernel_gs_base": (0x620, 8), "sysenter_eip": (0x638, 8),
    "cr2": (0x640, 8), "g_pat": (0x668, 8), "dbgctl": (0x670, 8), "last_excp_to": (0x690, 8),
    "spec_ctrl": (0x6E0, 8),
}  # fmt: skip


def values(layout: Layout) -> st.SearchStrategy[dict[str, Any]]:
    """Random values for every field of a layout."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in layout.fields.items():
        if isinstance(field.type, construct.FormatField):
            raw = st.binary(min_size=field.size, max_size=field.size)
            fields[name] = raw.map(field.type.parse)
        else:
            fields[name] = st.binary(min_size=field.size, max_size=field.size)
    return st.fixed_dictionaries(fields)


@given(given_values=values(CONTROL))
def test_control_round_trip(given_values: dict[str, Any]) -> None:
    assert CONTROL.parse(CONTROL.build(given_values)) == given_values


@given(given_values=values(SAVE))
def test_save_round_trip(given_values: dict[str, Any]) -> None:
    assert SAVE.parse(SAVE.build(given_values)) == given_values


@pytest.mark.parametrize(
    ("layout", "base", "name", "at"),
    [(CONTROL, 0, name, at) for name, at in PAGE_OFFSETS.items()]
    + [(SAVE, SAVE_OFFSET, name, at) for name, at in SAVE_PAGE_OFFSETS.items()],
)
def test_offsets_and_widths(layout: Layout, base: int, name: str, at: tuple[int, int]) -> None:
    assert (base + layout.offset(name), layout.fields[name].size) == at


def test_sizes() -> None:
    assert (CONTROL.size, SAVE.size, PAGE_SIZE) == (0x400, 0x300, 0x1000)


def test_single_fields_are_read_in_the_page() -> None:
    page = bytearray(PAGE_SIZE)
    page[0x408:0x410] = (0x1122334455667788).to_bytes(8, "little")
    page[0x050:0x058] = (-5).to_bytes(8, "little", signed=True)
    assert SAVE.get(page, "es_base", SAVE_OFFSET) == 0x1122334455667788
    assert CONTROL.get(page, "tsc_offset") == -5


def test_every_field_of_the_save_area_has_one_class() -> None:
    assert sorted(name for register in REGISTERS for name in save_fields(register)) == sorted(SAVE.fields)
    assert sorted(registers(*RegisterClass)) == sorted(REGISTERS)


@pytest.mark.parametrize(
    ("register", "class_"),
    [
        ("cs", RegisterClass.VMRUN),
        ("rax", RegisterClass.VMRUN),
        ("tr", RegisterClass.VMLOAD),
        ("cr2", RegisterClass.L2_ONLY),
        ("ssp", RegisterClass.VMRUN_SHSTK),
        ("dbgctl", RegisterClass.VMRUN_LBR),
    ],
)
def test_register_classes(register: str, class_: RegisterClass) -> None:
    assert REGISTERS[register] is class_
    assert register in registers(class_)


@pytest.mark.parametrize(
    ("offset", "bit", "name"),
    [
        (0x000, 0, "read CR0"),
        (0x000, 19, "write CR3"),
        (0x004, 7, "read DR7"),
        (0x004, 23, "write DR7"),
        (0x008, 14, "#PF (14)"),
        (0x008, 2, "word 2 bit 2"),
        (0x00C, 0, "INTERCEPT_INTR"),
        (0x00C, 18, "INTERCEPT_CPUID"),
        (0x00C, 24, "INTERCEPT_HLT"),
        (0x00C, 28, "INTERCEPT_MSR_PROT"),
        (0x00C, 31, "INTERCEPT_SHUTDOWN"),
        (0x010, 0, "INTERCEPT_VMRUN"),
        (0x010, 12, "INTERCEPT_MWAIT_COND"),
        (0x010, 14, "INTERCEPT_RDPRU"),
        (0x010, 15, "TRAP_EFER_WRITE"),
        (0x010, 20, "TRAP_CR4_WRITE"),
        (0x014, 2, "INTERCEPT_INVPCID"),
        (0x014, 6, "INTERCEPT_IDLE_HLT"),
        (0x014, 31, "word 5 bit 31"),
    ],
)
def test_intercept_names(offset: int, bit: int, name: str) -> None:
    control = bytearray(CONTROL.size)
    control[offset : offset + 4] = (1 << bit).to_bytes(4, "little")
    assert intercepts(control) == [name]


def test_intercept_names_are_unique_and_ordered() -> None:
    assert len(set(INTERCEPTS.values())) == len(INTERCEPTS)
    everything = intercepts(b"\xff" * CONTROL.size)
    assert len(everything) == 6 * 32
    assert everything[0] == "read CR0"
    assert everything[128] == "INTERCEPT_VMRUN"


@pytest.mark.parametrize(
    ("flags", "value", "names"),
    [
        (IntCtl, 0, []),
        (IntCtl, 0x0100_0000, ["V_INTR_MASKING"]),
        (IntCtl, 0x831F_1B08, [
            "V_TPR=0x8", "V_IRQ", "V_GIF", "V_NMI_PENDING", "V_NMI_BLOCKING", "V_INTR_PRIO=0xf", "V_IGN_TPR",
            "V_INTR_MASKING", "V_GIF_ENABLE", "AVIC_ENABLE",
        ]),
        (MiscCtl, 0x1D, ["NP", "SEV_ES", "GMET", "bit 4"]),
        (Clean, 0x8000_0001, ["INTERCEPTS", "SW"]),
    ],
)  # fmt: skip
def test_named_bits(flags: type[IntCtl], value: int, names: list[str]) -> None:
    assert named_bits(flags, value) == names


@pytest.mark.parametrize(
    ("event", "error", "decoded", "text"),
    [
        (0, 0, EventInjection(False, 0, "INTR", None), "none"),
        (0x8000_0030, 0, EventInjection(True, 0x30, "INTR", None), "INTR vector 0x30"),
        (0x8000_0202, 0, EventInjection(True, 2, "NMI", None), "NMI vector 0x2"),
        (0x8000_0B0E, 6, EventInjection(True, 14, "EXEPT", 6), "EXEPT #PF vector 0xe, error code 0x6"),
        (0x8000_0302, 9, EventInjection(True, 2, "EXEPT", None), "EXEPT vector 0x2"),
        (0x8000_0480, 0, EventInjection(True, 0x80, "SOFT", None), "SOFT vector 0x80"),
        (0x8000_0100, 0, EventInjection(True, 0, "reserved 1", None), "reserved 1 vector 0x0"),
    ],
)
def test_event_injection(event: int, error: int, decoded: EventInjection, text: str) -> None:
    control = bytearray(CONTROL.size)
    CONTROL.put(control, "event_inj", event)
    CONTROL.put(control, "event_inj_err", error)
    assert EventInjection.from_control(control) == decoded
    assert str(decoded) == text
