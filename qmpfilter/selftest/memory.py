# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies where in the guest's memory: code, page tables, VMCB12, what L2's exceptions need.

L1 executes VMLOAD, VMRUN, VMSAVE and OUT, again and again; L2 what its case wants, then OUT, then VMMCALL. So
the first OUT stops the machine inside of L2, with VMMCALL as L2's next instruction, and the second after
#VMEXIT, with all of L2's registers in VMCB12.

Sources: AMD64 Architecture Programmer's Manual, volume 2, sections 4.7 and 4.8 (descriptors), 5.2 to 5.4 (page
tables), 8.9 (interrupt gates), 15.20 (event injection), 15.25 (nested paging).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qmpfilter.selftest import code
from qmpfilter.selftest.case import Case, Mode
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET

__all__ = [
    "COUNTER",
    "HSAVE",
    "IN_L1",
    "IN_L2",
    "IN_SMM",
    "IOPM",
    "L1_CODE",
    "L1_MAP",
    "L2_CODE",
    "L2_GDT",
    "L2_IDT",
    "L2_MAP",
    "L2_STACK",
    "MEMORY",
    "MSRPM",
    "NESTED_MAP",
    "VECTOR",
    "VMCB12",
    "code_base",
    "contents",
]

IN_L2: Final = 0x10
IN_L1: Final = 0x11
IN_SMM: Final = 0x12
"""Ports that tell where the guest is."""

MEMORY: Final = 4 << 20
VMCB12: Final = 0x4000
COUNTER: Final = 0x7_0000
"""32 bits that L2's exception handler counts up."""

L1_MAP, HSAVE, IOPM, MSRPM, L1_CODE = 0x1000, 0x5000, 0x6000, 0x9000, 0x1_0000
L2_CODE, L2_STACK, L2_HANDLER = 0x2_0000, 0x3_0000, 0x2_8000
# L2's own page tables and those of nested paging share no page.
L2_MAP, NESTED_MAP, L2_IDT, L2_GDT = 0x4_0000, 0x5_0000, 0x6_0000, 0x6_2000
_SMM_CODE: Final = 0x3_8000  # SMBASE 0x30000 at reset, and the handler 0x8000 behind it

VECTOR: Final = 6
"""#UD: what L1 injects."""

_PRESENT, _WRITE, _USER, _LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
_ACCESSED_DIRTY = 3 << 5
_TABLE = _PRESENT | _WRITE | _USER | _ACCESSED_DIRTY

_CODE64_DESCRIPTOR: Final = 0x00AF_9B00_0000_FFFF
_INTERRUPT_GATE: Final = 0x8E00

_EVENT_VALID: Final = 1 << 31
_EVENT_EXCEPTION: Final = 3 << 8


def contents(case: Case, vmcb12: bytes) -> Mapping[int, bytes]:
    """What the guest's memory holds at the start, by guest-physical address."""
    return {
        L1_MAP: _long_map(L1_MAP),
        L1_CODE: _l1(case),
        L2_CODE: code.VMMCALL if case.loop else case.before + code.out_al(IN_L2) + code.VMMCALL,
        L2_HANDLER: code.count_at(COUNTER) + code.VMMCALL,
        L2_IDT: 256 * _gate(L2_HANDLER),
        L2_GDT: bytes(8) + _CODE64_DESCRIPTOR.to_bytes(8, "little"),
        L2_MAP: _map_of(case.mode),
        NESTED_MAP: _long_map(NESTED_MAP),
        _SMM_CODE: code.out_al(IN_SMM) + code.RSM,
        VMCB12: vmcb12,
    }


def code_base(mode: Mode) -> int:
    """Base of L2's code segment: where IP has 16 bits it does not reach the code otherwise."""
    return L2_CODE if mode.paragraphs or mode is Mode.PROTECTED_16 else 0


def _l1(case: Case) -> bytes:
    l1 = b""
    if case.inject:
        l1 += code.store_rax(CONTROL.offset("event_inj"), _EVENT_VALID | _EVENT_EXCEPTION | VECTOR)
    l1 += code.VMLOAD + code.VMRUN + code.VMSAVE + code.out_al(IN_L1)
    if case.loop:
        l1 += code.store_rax(SAVE_OFFSET + SAVE.offset("rip"), L2_CODE - code_base(case.mode))
        l1 += code.store_rax(SAVE_OFFSET + SAVE.offset("rsp"), L2_STACK)
    return l1 + code.jump_back(len(l1))


def _gate(handler: int) -> bytes:
    low = handler & 0xFFFF | 0x8 << 16 | _INTERRUPT_GATE << 32 | handler >> 16 << 48
    return low.to_bytes(8, "little") + bytes(8)


def _map_of(mode: Mode) -> bytes:
    """L2's page tables."""
    if not mode.paged:
        return b""
    if not mode.pae:
        # A page directory with one page of 4 MiB.
        return (_TABLE | _LARGE).to_bytes(4, "little").ljust(0x1000, b"\0")
    return _long_map(L2_MAP) if mode.long else _pae_map(L2_MAP)


def _long_map(at: int) -> bytes:
    """PML4, page directory pointers, page directory: the first 4 MiB mapped to themselves."""
    return _page(at + 0x1000 | _TABLE) + _page(at + 0x2000 | _TABLE) + _page(*_large_pages())


def _pae_map(at: int) -> bytes:
    """The pointers of PAE, which have no access rights, and a page directory."""
    return _page(at + 0x1000 | _PRESENT) + _page(*_large_pages())


def _large_pages() -> tuple[int, int]:
    return _TABLE | _LARGE, 2 << 20 | _TABLE | _LARGE


def _page(*entries: int) -> bytes:
    return b"".join(entry.to_bytes(8, "little") for entry in entries).ljust(0x1000, b"\0")
