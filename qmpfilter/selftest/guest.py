# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest: an L1 in long mode that runs an L2 of one kind or another, put into memory ready to start.

L1 executes VMRUN, VMSAVE and OUT, again and again; L2 what its case wants, then OUT, then VMMCALL. So the first
OUT stops the machine inside of L2, with VMMCALL as L2's next instruction, and the second after #VMEXIT, with
all of L2's registers in VMCB12.

Sources: AMD64 Architecture Programmer's Manual, volume 2, sections 4.7 (descriptors), 5.2 to 5.4 (page
tables), 15.5 (VMRUN), 15.20 (event injection), 15.25 (nested paging).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from qmpfilter.kvm import uapi
from qmpfilter.kvm.device import Kvm, Memory, Vcpu, Vm
from qmpfilter.selftest import code
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET

__all__ = ["COUNTER", "IN_L1", "IN_L2", "IN_SMM", "MEMORY", "VMCB12", "Case", "Mode", "prepare", "start"]

IN_L2: Final = 0x10
IN_L1: Final = 0x11
IN_SMM: Final = 0x12
"""Ports that tell where the guest is."""

MEMORY: Final = 4 << 20
VMCB12: Final = 0x4000
COUNTER: Final = 0x7_0000
"""32 bits that L2's exception handler counts up."""

_L1_MAP, _HSAVE, _IOPM, _MSRPM, _L1_CODE = 0x1000, 0x5000, 0x6000, 0x9000, 0x1_0000
_L2_CODE, _L2_STACK, _L2_HANDLER = 0x2_0000, 0x3_0000, 0x2_8000
_L2_MAP, _NESTED_MAP, _L2_IDT = 0x4_0000, 0x5_0000, 0x6_0000
_SMM_CODE: Final = 0x3_8000  # SMBASE 0x30000 at reset, and the handler 0x8000 behind it

_PRESENT, _WRITE, _USER, _LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
_ACCESSED_DIRTY = 3 << 5
_TABLE = _PRESENT | _WRITE | _USER | _ACCESSED_DIRTY
_CODE64, _CODE32, _DATA, _TSS, _LDT = 0x29B, 0xC9B, 0xC93, 0x08B, 0x082
_CR0_PE, _CR0_PG = 1 << 0, 1 << 31
_CR0_ALWAYS: Final = 0x30  # ET, NE
_CR4_PSE, _CR4_PAE = 1 << 4, 1 << 5
_EFER_LONG, _EFER_SVME, _EFER_NXE, _EFER_SCE = 0x500, 0x1000, 0x800, 0x1
_DR6: Final = 0xFFFF_0FF0
_PAT: Final = 0x0007_0406_0007_0406
_VECTOR: Final = 6  # #UD: what L1 injects, and what the case "events" lets the host inject
_VM_HSAVE_PA: Final = 0xC001_0117

# intercept words 3 and 4 (APM volume 2 appendix B): SHUTDOWN; VMRUN and VMMCALL
_WORD3: Final = 1 << 31
_WORD4: Final = 1 << 0 | 1 << 1
_V_GIF, _V_INTR_MASKING, _V_GIF_ENABLE = 1 << 9, 1 << 24, 1 << 25
_EVENT_VALID: Final = 1 << 31
_EVENT_EXCEPTION: Final = 3 << 8


class Mode(enum.Enum):
    """What L2 runs in."""

    LONG = "64-bit"
    USER = "64-bit at CPL 3"
    PAE = "32-bit with PAE"
    LEGACY = "32-bit without PAE"
    REAL = "real mode"


@dataclass(frozen=True)
class Case:
    """One guest and one way to stop it.

    :param name: for the report
    :param mode: what L2 runs in
    :param nested_paging: VMCB12 has nested paging on
    :param seed: of the values in L2's registers
    :param before: L2's instructions before the OUT
    :param int_ctl: VMCB12's, besides V_TPR
    :param inject: L1 injects an exception at each VMRUN
    :param loop: L2 only executes VMMCALL, for a stop right after VMRUN
    :param events: what is put into KVM's events at the stop, by field
    :param smi: an SMI comes at the stop; the guest is then stopped in SMM
    :param intercept_dr: VMCB12's
    """

    name: str
    mode: Mode = Mode.LONG
    nested_paging: bool = False
    seed: int = 0
    before: bytes = b""
    int_ctl: int = 0
    inject: bool = False
    loop: bool = False
    events: Mapping[str, int] = field(default_factory=dict)
    smi: bool = False
    intercept_dr: int = 0


def prepare(kvm: Kvm, case: Case) -> tuple[Vm, Memory, Vcpu]:
    """A machine with the case's guest in its memory and the vCPU about to start L1."""
    vm, memory, vcpu = start(kvm)
    for gpa, content in _contents(case).items():
        memory.write(gpa, content)
    sregs = vcpu.sregs2()
    _segment(sregs.cs, _CODE64)
    for name in ("ds", "es", "ss"):
        _segment(getattr(sregs, name), _DATA)
    _segment(sregs.tr, _TSS)
    sregs.cr0 = _CR0_ALWAYS | _CR0_PE | _CR0_PG
    sregs.cr3, sregs.cr4 = _L1_MAP, _CR4_PAE
    sregs.efer = _EFER_LONG | _EFER_SVME | _EFER_NXE | _EFER_SCE
    vcpu.set_sregs2(sregs)
    vcpu.set_msrs({_VM_HSAVE_PA: _HSAVE})
    random = Random(case.seed)
    names = ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
    values = {name: random.getrandbits(64) for name in names}
    vcpu.set_regs(uapi.Regs(rax=VMCB12, rip=_L1_CODE, rsp=_canonical(random), rflags=0x2, **values))
    debug = uapi.DebugRegs(dr6=_DR6, dr7=0x400)
    debug.db[:] = [_canonical(random) for _ in range(4)]
    vcpu.set_debug_regs(debug)
    return vm, memory, vcpu


def start(kvm: Kvm) -> tuple[Vm, Memory, Vcpu]:
    """A machine with empty memory and a vCPU as after reset."""
    vm = kvm.create_vm()
    try:
        memory = vm.add_memory(0, MEMORY)
        return vm, memory, vm.create_vcpu(0, kvm.supported_cpuid())
    except BaseException:
        vm.close()
        raise


def _segment(segment: uapi.Segment, attrib: int) -> None:
    """A flat segment."""
    segment.base, segment.limit, segment.selector = 0, 0xFFFF_FFFF, 0x8
    segment.type, segment.s, segment.dpl, segment.present = attrib & 15, attrib >> 4 & 1, attrib >> 5 & 3, 1
    segment.avl, segment.l, segment.db, segment.g = attrib >> 8 & 1, attrib >> 9 & 1, attrib >> 10 & 1, 1
    segment.unusable = 0


def _contents(case: Case) -> Mapping[int, bytes]:
    """What lies where in guest memory."""
    entry = code.store_rax(CONTROL.offset("event_inj"), _EVENT_VALID | _EVENT_EXCEPTION | _VECTOR)
    rewind = code.store_rax(SAVE_OFFSET + SAVE.offset("rip"), _L2_CODE)
    rewind += code.store_rax(SAVE_OFFSET + SAVE.offset("rsp"), _L2_STACK)
    l1 = (entry if case.inject else b"") + code.VMRUN + code.VMSAVE + code.out_al(IN_L1)
    if case.loop:
        l1 += rewind
    l1 += code.jump_back(len(l1))
    l2 = code.VMMCALL if case.loop else case.before + code.out_al(IN_L2) + code.VMMCALL
    handler = code.count_at(COUNTER) + code.VMMCALL
    gate = _L2_HANDLER & 0xFFFF | 0x8 << 16 | 0x8E00 << 32 | _L2_HANDLER >> 16 << 48
    return {
        _L1_MAP: _long_map(_L1_MAP),
        _L1_CODE: l1,
        _L2_CODE: l2,
        _L2_HANDLER: handler,
        _L2_IDT: b"".join(gate.to_bytes(8, "little") + bytes(8) for _ in range(256)),
        _L2_MAP: _map_of(case.mode),
        _NESTED_MAP: _long_map(_NESTED_MAP),
        _SMM_CODE: code.out_al(IN_SMM) + code.RSM,
        # The GDT that the handler's code segment is read from.
        _L2_IDT + 0x2000: bytes(8) + (0x00AF_9B00_0000_FFFF).to_bytes(8, "little"),
        VMCB12: _vmcb12(case),
    }  # fmt: skip


def _map_of(mode: Mode) -> bytes:
    """L2's page tables."""
    if mode is Mode.REAL:
        return b""
    if mode is Mode.LEGACY:
        # A page directory with one page of 4 MiB.
        return (_TABLE | _LARGE).to_bytes(4, "little").ljust(0x1000, b"\0")
    return _pae_map(_L2_MAP) if mode is Mode.PAE else _long_map(_L2_MAP)


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


def _canonical(random: Random) -> int:
    """An address of the upper or lower half."""
    return random.getrandbits(47) | random.choice((0, 0xFFFF_8000_0000_0000))


def _vmcb12(case: Case) -> bytes:
    """VMCB12 with values of its own in every register that takes any."""
    random = Random(~case.seed)
    page = bytearray(0x1000)
    control = {
        "intercept_word3": _WORD3,
        "intercept_word4": _WORD4,
        "intercept_dr": case.intercept_dr,
        "iopm_base_pa": _IOPM,
        "msrpm_base_pa": _MSRPM,
        "asid": 1,
        "tsc_offset": random.getrandbits(32),
        "int_ctl": case.int_ctl | random.getrandbits(4),
        "misc_ctl": int(case.nested_paging),
        "nested_cr3": _NESTED_MAP if case.nested_paging else 0,
    }
    for name, value in control.items():
        CONTROL.put(page, name, value)
    for name, value in _registers(case, random).items():
        SAVE.put(page, name, value, SAVE_OFFSET)
    return bytes(page)


def _registers(case: Case, random: Random) -> dict[str, int]:
    mode = case.mode
    long = mode in (Mode.LONG, Mode.USER)
    user = mode is Mode.USER
    dpl = 3 if user else 0
    values: dict[str, int] = {
        "cr0": _CR0_ALWAYS | random.choice((0, 1 << 1)) | random.choice((0, 1 << 16)),
        "cr4": random.choice((0, 1 << 3)) | random.choice((0, 1 << 7)),
        "efer": _EFER_SVME | _EFER_NXE | random.choice((0, _EFER_SCE)),
        "cr3": 0 if mode is Mode.REAL else _L2_MAP,
        "cr2": random.getrandbits(64 if long else 32),
        "dr6": _DR6 | random.getrandbits(4),
        "dr7": 0x400,
        "g_pat": _PAT,
        # CF PF AF ZF SF DF OF AC ID as they come; IOPL for the OUT of CPL 3
        "rflags": 0x2 | random.getrandbits(22) & 0x24_0CD5 | (0x3000 if user else 0),
        "rip": 0 if mode is Mode.REAL else _L2_CODE,
        "rsp": _L2_STACK,
        "rax": random.getrandbits(64 if long else 32),
        "cpl": dpl,
        "idtr_base": _L2_IDT,
        "idtr_limit": 0xFFF,
        "gdtr_base": _L2_IDT + 0x2000,
        "gdtr_limit": random.randrange(0xF, 0x1_0000),
        "star": random.getrandbits(64),
        "lstar": _canonical(random),
        "cstar": _canonical(random),
        "sfmask": random.getrandbits(32),
        "kernel_gs_base": _canonical(random),
        "sysenter_cs": random.getrandbits(16),
        "sysenter_esp": random.getrandbits(32),
        "sysenter_eip": random.getrandbits(32),
    }  # fmt: skip
    if mode is not Mode.REAL:
        values["cr0"] |= _CR0_PE | _CR0_PG
    values["cr4"] |= {Mode.LEGACY: _CR4_PSE, Mode.REAL: 0}.get(mode, _CR4_PAE)
    if long:
        values["efer"] |= _EFER_LONG
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"):
        values |= _segment_values(name, mode, dpl, random)
    return values


def _segment_values(name: str, mode: Mode, dpl: int, random: Random) -> dict[str, int]:
    """A segment that the mode allows, with what is free in it at random."""
    long = mode in (Mode.LONG, Mode.USER)
    free = name not in ("cs", "ss")
    attrib = {"cs": _CODE64 if long else _CODE32, "tr": _TSS, "ldtr": _LDT}.get(name, _DATA)
    limit = 0xFFFF_FFFF if attrib in (_CODE32, _DATA) else random.randrange(0x67, 0x1_0000)
    if name == "cs" and long:
        limit = 0xFFFF_FFFF
        attrib |= 0x800
    base = 0
    if mode is Mode.REAL:
        limit, attrib = (0xFFFF, 0x09B if name == "cs" else 0x093) if name not in ("tr", "ldtr") else (limit, attrib)
        base = _L2_CODE if name == "cs" else random.getrandbits(16) << 4
    elif free:
        base = _canonical(random) if long and name in ("fs", "gs", "ldtr", "tr") else random.getrandbits(32)
    if mode is Mode.REAL and name not in ("tr", "ldtr"):
        selector = base >> 4
    else:
        selector = (random.getrandbits(13) << 3 | dpl) if name != "cs" else 0x8 | dpl
    if name not in ("tr", "ldtr"):
        attrib |= dpl << 5 | random.choice((0, 0x100))
    return {f"{name}_selector": selector, f"{name}_base": base, f"{name}_limit": limit, f"{name}_attrib": attrib}
