# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU's registers as QEMU would send and load them: KVM's structures to a `cpu` section's parts and back.

Source: QEMU 10.2.2 target/i386/kvm/kvm.c (kvm_arch_get_registers, kvm_arch_put_registers, get_seg, set_seg),
target/i386/machine.c.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qmpfilter.kvm import uapi
from qmpfilter.kvm.device import Vcpu
from qmpfilter.svm import annex
from qmpfilter.svm.legacy import LegacyState, StateFlags
from qmpfilter.svm.vmcb import PAGE_SIZE
from qmpfilter.wire import cpu

__all__ = ["EVENTS_VALID", "GPRS", "MSRS", "SEGMENTS", "State", "load", "save"]

GPRS: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENTS: Final[Mapping[str, str]] = {name: name for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr")}
MSRS: Final[Mapping[str, int]] = {
    "sysenter_cs": 0x174,
    "sysenter_esp": 0x175,
    "sysenter_eip": 0x176,
    "pat": 0x277,
    "star": 0xC000_0081,
    "lstar": 0xC000_0082,
    "cstar": 0xC000_0083,
    "fmask": 0xC000_0084,
    "kernelgsbase": 0xC000_0102,
    "vm_hsave": 0xC001_0117,
}
_PDPTRS: Final = "cpu/pdptrs"
_PDPTRS_VALID: Final = 1 << 0
_RFLAGS_VM: Final = 1 << 17
_V8086: Final = 3 << 8 | 1 << 12 | 3 << 13 | 1 << 15  # set_v8086_seg: type 3, S, DPL 3, P
_BLOB: Final = struct.Struct("<HHIQ")
_BLOB_PAGE: Final = 0x80
# KVM_VCPUEVENT_VALID_NMI_PENDING, _SIPI_VECTOR, _SMM: what QEMU sets in kvm_put_vcpu_events.
EVENTS_VALID: Final = 0x1 | 0x2 | 0x8


@dataclass(frozen=True)
class State:
    """What travels of one vCPU.

    :param nested: its nested state
    :param block: the field block of its section
    :param subsections: payloads by full name
    :param shared: what both levels share and no conversion sees: XSAVE area, XCRs, DR0 to DR3, events, MP state
    """

    nested: LegacyState
    block: bytes
    subsections: Mapping[str, bytes]
    shared: tuple[bytes, uapi.Xcrs, tuple[int, ...], uapi.Events, int]


def save(vcpu: Vcpu) -> State:
    """Read everything, in QEMU's order."""
    events, mp_state = vcpu.events(), vcpu.mp_state()
    regs, xsave, xcrs, sregs = vcpu.regs(), vcpu.xsave(), vcpu.xcrs(), vcpu.sregs2()
    msrs = vcpu.msrs([*MSRS.values()])
    debug = vcpu.debug_regs()
    nested = _legacy(vcpu.nested_state())
    block = bytearray(cpu.BLOCK.size)

    def put(name: str, value: int) -> None:
        cpu.BLOCK.put(block, name, value)

    for name in (*GPRS, "rip", "rflags"):
        put(name, getattr(regs, name))
    for name in SEGMENTS:
        _put_segment(put, name, getattr(sregs, name))
    for name in ("gdt", "idt"):
        put(f"{name}_base", getattr(sregs, name).base)
        put(f"{name}_limit", getattr(sregs, name).limit)
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        put(name, getattr(sregs, name))
    for name, index in MSRS.items():
        put(name, msrs[index])
    for name, value in (("dr6", debug.dr6), ("dr4", debug.dr6), ("dr7", debug.dr7), ("dr5", debug.dr7)):
        put(name, value)
    injected = events.exception_injected or events.exception_pending
    put("exception_nr", events.exception_nr if injected else -1)
    put("hflags", (cpu.HF_GUEST if nested.guest_mode else 0) | (cpu.HF_SMM if events.smi_smm else 0))
    put("hflags2", cpu.HF2_GIF if nested.gif else 0)
    subsections = {}
    if sregs.flags & _PDPTRS_VALID:
        subsections[_PDPTRS] = struct.pack(">4Q", *sregs.pdptrs)
    shared = (xsave, xcrs, tuple(debug.db), events, mp_state)
    return State(nested, bytes(block), subsections, shared)


def load(vcpu: Vcpu, state: State) -> None:
    """Write everything, in QEMU's order: the nested state after the special registers and before all else.

    :raises KvmError: the kernel refuses something
    """
    xsave, xcrs, db, events, mp_state = state.shared

    def get(name: str) -> int:
        return cpu.BLOCK.get(state.block, name)

    # CR8 and the APIC base are nobody's here: they stay.
    sregs = vcpu.sregs2()
    v8086 = get("rflags") & _RFLAGS_VM
    for name in SEGMENTS:
        flags = _V8086 if v8086 and name not in ("ldt", "tr") else get(f"{name}_flags")
        _get_segment(get, name, flags, getattr(sregs, name))
    for name in ("gdt", "idt"):
        getattr(sregs, name).base = get(f"{name}_base")
        getattr(sregs, name).limit = get(f"{name}_limit")
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        setattr(sregs, name, get(name))
    pdptrs = state.subsections.get(_PDPTRS)
    sregs.flags = 0 if pdptrs is None else _PDPTRS_VALID
    if pdptrs is not None:
        sregs.pdptrs[:] = struct.unpack(">4Q", pdptrs)
    vcpu.set_sregs2(sregs)
    vcpu.set_nested_state(_blob(state.nested))
    vcpu.set_regs(uapi.Regs(**{name: get(name) for name in (*GPRS, "rip", "rflags")}))
    vcpu.set_xsave(xsave)
    vcpu.set_xcrs(xcrs)
    vcpu.set_msrs({index: get(name) for name, index in MSRS.items()})
    events = uapi.Events.from_buffer_copy(events)
    events.flags = EVENTS_VALID
    vcpu.set_events(events)
    vcpu.set_mp_state(mp_state)
    debug = uapi.DebugRegs(dr6=get("dr6"), dr7=get("dr7"))
    debug.db[:] = db
    vcpu.set_debug_regs(debug)


def _legacy(blob: bytes) -> LegacyState:
    flags, format_, size, vmcb_pa = _BLOB.unpack_from(blob)
    guest_mode = flags & StateFlags.GUEST_MODE
    # A kernel that emits svm2 is tested for what it does with legacy state.
    page = annex.strip(blob[_BLOB_PAGE : _BLOB_PAGE + PAGE_SIZE]) if guest_mode else None
    return LegacyState(flags, format_, size, vmcb_pa if guest_mode else 0, page)


def _blob(nested: LegacyState) -> bytes:
    header = _BLOB.pack(nested.flags, nested.format, nested.size, nested.vmcb_pa)
    return header.ljust(_BLOB_PAGE, b"\0") + (nested.page or b"")


def _put_segment(put: Any, name: str, segment: uapi.Segment) -> None:
    present = segment.present and not segment.unusable
    flags = (
        segment.type << 8 | segment.s << 12 | segment.dpl << 13 | (1 << 15 if present else 0) | segment.avl << 20
        | segment.l << 21 | segment.db << 22 | segment.g << 23
    )  # fmt: skip
    put(f"{name}_selector", segment.selector)
    put(f"{name}_base", segment.base)
    put(f"{name}_limit", segment.limit)
    put(f"{name}_flags", flags)


def _get_segment(get: Any, name: str, flags: int, segment: uapi.Segment) -> None:
    segment.selector = get(f"{name}_selector") & 0xFFFF
    segment.base = get(f"{name}_base")
    segment.limit = get(f"{name}_limit")
    segment.type = flags >> 8 & 15
    segment.s = flags >> 12 & 1
    segment.dpl = flags >> 13 & 3
    segment.present = flags >> 15 & 1
    segment.avl = flags >> 20 & 1
    segment.l = flags >> 21 & 1
    segment.db = flags >> 22 & 1
    segment.g = flags >> 23 & 1
    segment.unusable = not segment.present
