# SPDX-License-Identifier: GPL-2.0-or-later
"""Random nested states that a kernel could have given, each with a section that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L2, LegacyState
from qmpfilter.svm.segment import NORMALISED, QEMU_NAMES, attrib_to_flags
from qmpfilter.svm.vmcb import CONTROL, PAGE_SIZE, SAVE, SAVE_OFFSET, RegisterClass, registers, save_fields
from qmpfilter.wire import cpu

_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
_LIVE_MSRS = {
    "star": "star", "lstar": "lstar", "cstar": "cstar", "sfmask": "fmask", "kernel_gs_base": "kernelgsbase",
    "sysenter_cs": "sysenter_cs", "sysenter_esp": "sysenter_esp", "sysenter_eip": "sysenter_eip",
}  # fmt: skip
_ABSENT_IN_HSAVE = [
    *(name for register in registers(RegisterClass.VMLOAD) for name in save_fields(register)),
    "cpl", "dr6", "dr7", "g_pat", "cr2",
]  # fmt: skip
_EMITTED_CONTROL = [
    "intercept_cr", "intercept_dr", "intercept_exception", "intercept_word3", "intercept_word4", "intercept_word5",
    "pause_filter_thresh", "pause_filter_count", "iopm_base_pa", "msrpm_base_pa", "asid", "tlb_ctl", "int_ctl",
    "int_vector", "int_state", "exit_code", "exit_info_1", "exit_info_2", "exit_int_info", "exit_int_info_err",
    "event_inj", "event_inj_err", "nested_cr3", "next_rip",
]  # fmt: skip
_PE, _PG, _CD, _NW = 1, 1 << 31, 1 << 30, 1 << 29
_PAE, _CET = 1 << 5, 1 << 23
_LME, _LMA, _SVME = 1 << 8, 1 << 10, 1 << 12
_VM = 1 << 17


class Legal(NamedTuple):
    """Arguments of the conversions."""

    legacy: LegacyState
    block: bytes
    subsections: Mapping[str, bytes]


def legal(seed: int) -> Legal:
    """The state of that number."""
    r = Random(seed)
    vmcb_pa = r.randrange(1, 1 << 40) << 12
    gif = r.random() < 0.8
    flags = 0x001 | (0x100 if gif else 0) | (0x002 if r.random() < 0.3 else 0)
    l1 = _l1(r, vmcb_pa)
    section = _section(r, l1, gif)
    if r.random() < 0.2:
        l1 |= dict.fromkeys(_ABSENT_IN_HSAVE, 0)
    page = bytearray(PAGE_SIZE)
    for name, value in _control(r).items():
        CONTROL.put(page, name, value)
    for name, value in l1.items():
        SAVE.put(page, name, value, SAVE_OFFSET)
    block = bytearray(r.randbytes(cpu.BLOCK.size))
    for name, value in section.items():
        cpu.BLOCK.put(block, name, value)
    subsections = {"cpu/pdptrs": r.randbytes(32)}
    if section["cr4"] & _CET or r.random() < 0.2:
        subsections |= {"cpu/cet": r.randbytes(16), "cpu/cet_shstk": r.randbytes(40)}
    if r.random() < 0.3:
        subsections["cpu/spec_ctrl"] = r.randbytes(8)
    return Legal(LegacyState(flags, FORMAT_SVM, SIZE_L2, vmcb_pa, bytes(page)), bytes(block), subsections)


def _control(r: Random) -> dict[str, int]:
    built = {name: r.getrandbits(8 * CONTROL.fields[name].size) for name in _EMITTED_CONTROL}
    built["intercept_word4"] |= 1
    built["asid"] |= 1
    built["iopm_base_pa"] &= ~0xFFF
    built["msrpm_base_pa"] &= ~0xFFF
    return built | {
        "tsc_offset": r.getrandbits(64) - (1 << 63),
        "misc_ctl": r.randrange(2),
        "misc_ctl2": r.randrange(4),
    }


def _l1(r: Random, vmcb_pa: int) -> dict[str, int]:
    built: dict[str, int] = {}
    for name in (*_SEGMENTS, "gdtr", "idtr"):
        built |= {f"{name}_base": r.getrandbits(64), f"{name}_limit": r.getrandbits(32)}
    for name in _SEGMENTS:
        built |= {f"{name}_selector": r.getrandbits(16), f"{name}_attrib": r.getrandbits(12)}
    for name in (*_LIVE_MSRS, "rip", "rsp", "cr2", "g_pat"):
        built[name] = r.getrandbits(64)
    built["cs_attrib"] &= ~(1 << 10)
    built["tr_attrib"] |= 0x80
    return built | {
        "efer": _SVME | _LME | _LMA | r.getrandbits(1),
        "cr0": (r.getrandbits(32) | _PG | _PE) & ~_NW,
        "cr3": r.getrandbits(52),
        "cr4": r.getrandbits(23) | _PAE,
        "dr6": r.getrandbits(32),
        "dr7": r.choice([0x400, 0x401, 0x400 | r.getrandbits(10)]),
        "rflags": (r.getrandbits(22) | 2) & ~_VM,
        "rax": vmcb_pa,
    }


def _section(r: Random, l1: Mapping[str, int], gif: bool) -> dict[str, int]:
    built: dict[str, int] = {}
    for name in _SEGMENTS:
        own = QEMU_NAMES.get(name, name)
        # Now and then a segment of the VMLOAD class is not that of the page.
        live = name in registers(RegisterClass.VMLOAD) and r.random() < 0.9
        attrib = l1[f"{name}_attrib"] ^ (r.getrandbits(12) & NORMALISED[name]) if live else r.getrandbits(12)
        built |= {
            f"{own}_selector": l1[f"{name}_selector"] if live else r.getrandbits(16),
            f"{own}_base": l1[f"{name}_base"] if live else r.getrandbits(64),
            f"{own}_limit": l1[f"{name}_limit"] if live else r.getrandbits(32),
            f"{own}_flags": attrib_to_flags(attrib),
        }
    for in_save, in_block in _LIVE_MSRS.items():
        built[in_block] = l1[in_save]
    built["sysenter_cs"] &= 0xFFFF_FFFF
    long_mode = r.random() < 0.7
    if not long_mode:
        built["cs_flags"] &= ~(1 << 21)
    return built | {
        "hflags": cpu.HF_GUEST | r.getrandbits(8),
        "hflags2": cpu.HF2_GIF if gif else 0,
        "efer": _SVME | (_LME | _LMA if long_mode else 0),
        "cr0": (r.getrandbits(29) | _PG | _PE) if long_mode else r.choice([0x10, 0x11, 0x6000_0011]),
        "cr4": r.getrandbits(20) | _PAE | r.choice([0, _CET]),
        "rflags": (r.getrandbits(22) | 2) & ~_VM,
        "dr7": r.choice([l1["dr7"], 0x400, 0x400 | r.getrandbits(10)]),
        "exception_nr": -1,
    }
