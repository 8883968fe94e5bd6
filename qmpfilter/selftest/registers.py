# SPDX-License-Identifier: GPL-2.0-or-later
"""Values for the registers of L1 and L2: legal for the mode, else as a seed has them.

What is fixed is what the guest needs to run, and what KVM's own restore would not keep: SYSENTER_ESP and
SYSENTER_EIP have 32 bits (Linux 7.3 arch/x86/kvm/svm/svm.c, svm_set_msr).

Sources: AMD64 Architecture Programmer's Manual, volume 2, sections 3.1 and 3.2 (control, debug and model-specific
registers), 4.7 and 4.8 (descriptors), 7.8 (PAT), 15.5 (what VMRUN accepts).
"""

from __future__ import annotations

from random import Random
from typing import Final

from qmpfilter.kvm import uapi
from qmpfilter.selftest import memory
from qmpfilter.selftest.case import Case, Mode
from qmpfilter.svm.vmcb import CONTROL, PAGE_SIZE, SAVE, SAVE_OFFSET, MiscCtl

__all__ = ["MSR_PAT", "debug_regs", "fill_sregs", "pat", "regs", "vmcb12", "xsave"]

MSR_PAT: Final = 0x277

_CODE64, _CODE32, _CODE16, _DATA, _V8086, _TSS, _LDT = 0x29B, 0xC9B, 0x09B, 0xC93, 0x0F3, 0x08B, 0x082
_DPL, _P, _AVL, _D, _G = 3 << 5, 1 << 7, 1 << 8, 1 << 10, 1 << 11
_S_DATA: Final = 1 << 4

_CR0_PE, _CR0_PG = 1 << 0, 1 << 31
_CR0_ALWAYS: Final = 1 << 4 | 1 << 5  # ET, NE
_CR0_FREE: Final = 1 << 1 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 30  # MP, TS, WP, AM, CD
_CR3_FREE: Final = 3 << 3  # PWT, PCD
_CR4_PSE, _CR4_PAE = 1 << 4, 1 << 5
# VME, PVI, TSD, DE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT: what every CPU with SVM has.
_CR4_FREE: Final = 0xF | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10
_EFER_LME, _EFER_LMA, _EFER_SVME = 1 << 8, 1 << 10, 1 << 12
_EFER_FREE: Final = 1 << 0 | 1 << 11  # SCE, NXE
_DR6: Final = 0xFFFF_0FF0
_DR6_FREE: Final = 0xF | 7 << 13  # B3 to B0, BD, BS, BT
_DR7: Final = 1 << 10
_DR7_FREE: Final = 0xFFFF_0300  # length and kind of breakpoints that are off, GE, LE
_RFLAGS: Final = 1 << 1
# CF PF AF ZF SF IF DF OF IOPL NT AC ID
_RFLAGS_FREE: Final = 0x24_7ED5
_RFLAGS_IOPL, _RFLAGS_VM = 3 << 12, 1 << 17
_PAT_TYPES: Final = (0, 1, 4, 5, 6, 7)
_UPPER_HALF: Final = 0xFFFF_8000_0000_0000

_SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")


def _canonical(random: Random) -> int:
    """An address of the upper or lower half."""
    return random.getrandbits(47) | random.choice((0, _UPPER_HALF))


def _some(random: Random, mask: int) -> int:
    """Some of these bits."""
    return random.getrandbits(64) & mask


# --- L1 ----------------------------------------------------------------------------------------


def regs(case: Case) -> uapi.Regs:
    """L1's, at its first instruction."""
    random = Random(f"regs {case.seed}")
    names = ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
    values = {name: random.getrandbits(64) for name in names}
    rflags = _RFLAGS | _some(random, _RFLAGS_FREE)
    return uapi.Regs(rax=memory.VMCB12, rip=memory.L1_CODE, rsp=_canonical(random), rflags=rflags, **values)


def fill_sregs(sregs: uapi.Sregs2, case: Case) -> None:
    """L1's, in long mode with SVM on."""
    random = Random(f"sregs {case.seed}")
    for name in _SEGMENTS:
        segment = getattr(sregs, "ldt" if name == "ldtr" else name)
        values = _segment(name, Mode.LONG, random)
        attrib = values["attrib"]
        segment.base, segment.limit, segment.selector = values["base"], values["limit"], values["selector"]
        segment.type, segment.s, segment.dpl, segment.present = attrib & 15, attrib >> 4, attrib >> 5, attrib >> 7
        segment.avl, segment.l, segment.db, segment.g = attrib >> 8, attrib >> 9, attrib >> 10, attrib >> 11
        for bit, width in (("s", 1), ("dpl", 3), ("present", 1), ("avl", 1), ("l", 1), ("db", 1), ("g", 1)):
            setattr(segment, bit, getattr(segment, bit) & width)
        segment.unusable = not segment.present
    for table in (sregs.gdt, sregs.idt):
        table.base, table.limit = _canonical(random), random.getrandbits(16)
    sregs.cr0 = _CR0_ALWAYS | _CR0_PE | _CR0_PG | _some(random, _CR0_FREE)
    sregs.cr2 = random.getrandbits(64)
    sregs.cr3 = memory.L1_MAP | _some(random, _CR3_FREE)
    sregs.cr4 = _CR4_PAE | _some(random, _CR4_FREE | _CR4_PSE)
    sregs.efer = _EFER_LME | _EFER_LMA | _EFER_SVME | _some(random, _EFER_FREE)


def debug_regs(case: Case) -> uapi.DebugRegs:
    """L1's DR6 and DR7, and the addresses, which L2 shares."""
    random = Random(f"debug {case.seed}")
    debug = uapi.DebugRegs(dr6=_DR6 | _some(random, _DR6_FREE), dr7=_DR7 | _some(random, _DR7_FREE))
    debug.db[:] = [_canonical(random) for _ in range(4)]
    return debug


def pat(case: Case) -> int:
    """IA32_PAT, which L1 and L2 share."""
    random = Random(f"pat {case.seed}")
    return int.from_bytes(random.choices(_PAT_TYPES, k=8), "little")


def xsave(case: Case) -> bytes:
    """An XSAVE area with x87 and SSE, which L1 and L2 share: FCW at 0, the tags at 4, MXCSR at 0x18, eight registers
    of 80 bits from 0x20 and sixteen of 128 from 0xa0, XSTATE_BV at 0x200 (APM volume 2, section 11.4.4)."""
    random = Random(f"xsave {case.seed}")
    area = bytearray(4096)
    area[0:2] = (0x37F).to_bytes(2, "little")
    area[4] = random.getrandbits(8)
    area[0x18:0x1C] = (0x1F80 | _some(random, 0x603F)).to_bytes(4, "little")
    for at in range(0x20, 0xA0, 16):
        area[at : at + 10] = random.randbytes(10)
    area[0xA0:0x1A0] = random.randbytes(0x100)
    area[0x200] = 3
    return bytes(area)


# --- L2 ----------------------------------------------------------------------------------------


def vmcb12(case: Case) -> bytes:
    """VMCB12 as L1 has it before its first VMRUN.

    L1 intercepts SHUTDOWN, VMRUN and VMMCALL, so whatever goes wrong in L2 ends in L1.
    """
    random = Random(f"vmcb12 {case.seed}")
    page = bytearray(PAGE_SIZE)
    control = {
        "intercept_word3": 1 << 31,
        "intercept_word4": 1 << 0 | 1 << 1,
        "intercept_dr": case.intercept_dr,
        "iopm_base_pa": memory.IOPM,
        "msrpm_base_pa": memory.MSRPM,
        "asid": random.randrange(1, 8),
        "tsc_offset": random.getrandbits(32),
        "int_ctl": case.int_ctl | random.getrandbits(4),
        "misc_ctl": int(MiscCtl.NP) if case.nested_paging else 0,
        "nested_cr3": memory.NESTED_MAP if case.nested_paging else 0,
    }
    for name, value in control.items():
        CONTROL.put(page, name, value)
    for name, value in _save_area(case, random).items():
        SAVE.put(page, name, value, SAVE_OFFSET)
    return bytes(page)


def _save_area(case: Case, random: Random) -> dict[str, int]:
    mode = case.mode
    width = 64 if mode.long else 32
    values: dict[str, int] = {
        "cr0": _CR0_ALWAYS | _some(random, _CR0_FREE),
        "cr4": _some(random, _CR4_FREE),
        "efer": _EFER_SVME | _some(random, _EFER_FREE),
        "cr3": memory.L2_MAP | _some(random, _CR3_FREE) if mode.paged else random.getrandbits(20) << 12,
        "cr2": random.getrandbits(width),
        "dr6": _DR6 | _some(random, _DR6_FREE),
        "dr7": _DR7 | _some(random, _DR7_FREE),
        # KVM ignores it, so it is IA32_PAT or anything else.
        "g_pat": random.choice((pat(case), int.from_bytes(random.choices(_PAT_TYPES, k=8), "little"))),
        "rflags": _RFLAGS | _some(random, _RFLAGS_FREE) | (_RFLAGS_IOPL if mode.cpl else 0),
        "rip": memory.L2_CODE - memory.code_base(mode),
        "rsp": memory.L2_STACK,
        "rax": random.getrandbits(width),
        "cpl": mode.cpl,
        "idtr_base": memory.L2_IDT,
        "idtr_limit": 0xFFF,
        "gdtr_base": memory.L2_GDT,
        "gdtr_limit": random.randrange(0xF, 0x1_0000),
        "star": random.getrandbits(64),
        "lstar": _canonical(random),
        "cstar": _canonical(random),
        "sfmask": random.getrandbits(32),
        "kernel_gs_base": _canonical(random),
        "sysenter_cs": random.getrandbits(32),
        "sysenter_esp": random.getrandbits(32),
        "sysenter_eip": random.getrandbits(32),
    }
    if mode is not Mode.REAL:
        values["cr0"] |= _CR0_PE
    if mode.paged:
        values["cr0"] |= _CR0_PG
        values["cr4"] |= _CR4_PAE | _some(random, _CR4_PSE) if mode.pae else _CR4_PSE
    if mode.long:
        values["efer"] |= _EFER_LME | _EFER_LMA
    if mode is Mode.V8086:
        values["rflags"] |= _RFLAGS_VM
    for name in _SEGMENTS:
        values |= {f"{name}_{part}": value for part, value in _segment(name, mode, random).items()}
    return values


def _segment(name: str, mode: Mode, random: Random) -> dict[str, int]:
    """A segment that the mode allows, with what is free in it at random."""
    selector, base = random.getrandbits(16), random.getrandbits(32)
    if mode.long and name in ("fs", "gs", "ldtr", "tr"):
        base = _canonical(random)
    limit = random.choice((random.getrandbits(20), random.getrandbits(20) << 12 | 0xFFF))
    free = _some(random, _AVL | _G)
    if name == "tr":
        attrib = _TSS
    elif name == "ldtr":
        attrib = random.choice((_LDT, _some(random, 0xFFF & ~_P)))
    elif name == "cs":
        selector, base, limit = 0x8 | mode.cpl, memory.code_base(mode), 0xFFFF_FFFF
        attrib = {Mode.PROTECTED_16: _CODE16}.get(mode, _CODE64 if mode in (Mode.LONG, Mode.USER) else _CODE32)
        # Readable or not, conforming or not.
        attrib = attrib ^ _some(random, 6) | mode.cpl << 5
    elif name == "ss":
        selector, base, limit = selector & ~3 | mode.cpl, 0, 0xFFFF_FFFF
        attrib = _DATA | mode.cpl << 5
        if mode is Mode.LONG and random.getrandbits(1):
            # A null SS, whose other attributes mean nothing; KVM itself drops D and DPL of it (svm_get_segment).
            attrib = _some(random, 0xFFF & ~(_P | _D | _DPL))
    else:
        # Data or readable code, accessed or not, of any level; or none at all.
        kind = random.choice((_P | _S_DATA | _some(random, 0x67 | _D), _P | _S_DATA | 0xA | _some(random, 0x65 | _D)))
        attrib = random.choice((kind, _some(random, 0xFFF & ~_P)))
    if mode.paragraphs and name not in ("tr", "ldtr"):
        selector = base >> 4 if name == "cs" else random.getrandbits(16)
        base, limit = selector << 4, 0xFFFF
        attrib, free = (_V8086, 0) if mode is Mode.V8086 else (_CODE16 if name == "cs" else 0x093, 0)
    return {"selector": selector, "base": base, "limit": limit, "attrib": attrib ^ free}
