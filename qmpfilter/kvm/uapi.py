# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's ioctls and their structures, as a little-endian x86-64 machine has them in memory.

Sources: Linux 6.12 include/uapi/linux/kvm.h (numbers, kvm_run), arch/x86/include/uapi/asm/kvm.h (structures)
and include/uapi/asm-generic/ioctl.h (how a request number is put together). The ABI does not change.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Final

__all__ = [
    "Cap",
    "CpuidEntry",
    "DebugRegs",
    "Dtable",
    "Events",
    "Exit",
    "Ioctl",
    "MemoryRegion",
    "MpState",
    "MsrEntry",
    "Regs",
    "Run",
    "Segment",
    "Sregs2",
    "Xcrs",
    "cpuid2",
    "msrs",
]

_U8, _U16, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


class Regs(ctypes.Structure):
    """struct kvm_regs."""

    _fields_ = [
        (name, _U64)
        for name in (
            "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
            "r15", "rip", "rflags",
        )
    ]  # fmt: skip


class Segment(ctypes.Structure):
    """struct kvm_segment."""

    _fields_ = [
        ("base", _U64),
        ("limit", _U32),
        ("selector", _U16),
        *((name, _U8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")),
    ]


class Dtable(ctypes.Structure):
    """struct kvm_dtable."""

    _fields_ = [("base", _U64), ("limit", _U16), ("padding", _U16 * 3)]


_SREGS = [
    *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
    *((name, Dtable) for name in ("gdt", "idt")),
    *((name, _U64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
]


class Sregs2(ctypes.Structure):
    """struct kvm_sregs2; flags bit 0: the PDPTRs are valid."""

    _fields_ = [*_SREGS, ("flags", _U64), ("pdptrs", _U64 * 4)]


class DebugRegs(ctypes.Structure):
    """struct kvm_debugregs."""

    _fields_ = [("db", _U64 * 4), ("dr6", _U64), ("dr7", _U64), ("flags", _U64), ("reserved", _U64 * 9)]


class Events(ctypes.Structure):
    """struct kvm_vcpu_events, its nested structures written out with their names before."""

    _fields_ = [
        ("exception_injected", _U8),
        ("exception_nr", _U8),
        ("exception_has_error_code", _U8),
        ("exception_pending", _U8),
        ("exception_error_code", _U32),
        ("interrupt_injected", _U8),
        ("interrupt_nr", _U8),
        ("interrupt_soft", _U8),
        ("interrupt_shadow", _U8),
        ("nmi_injected", _U8),
        ("nmi_pending", _U8),
        ("nmi_masked", _U8),
        ("nmi_pad", _U8),
        ("sipi_vector", _U32),
        ("flags", _U32),
        ("smi_smm", _U8),
        ("smi_pending", _U8),
        ("smi_smm_inside_nmi", _U8),
        ("smi_latched_init", _U8),
        ("triple_fault_pending", _U8),
        ("reserved", _U8 * 26),
        ("exception_has_payload", _U8),
        ("exception_payload", _U64),
    ]


class MsrEntry(ctypes.Structure):
    """struct kvm_msr_entry."""

    _fields_ = [("index", _U32), ("reserved", _U32), ("data", _U64)]


class CpuidEntry(ctypes.Structure):
    """struct kvm_cpuid_entry2; flags bit 0: `index` counts."""

    _fields_ = [
        *((name, _U32) for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
        ("padding", _U32 * 3),
    ]


class MemoryRegion(ctypes.Structure):
    """struct kvm_userspace_memory_region."""

    _fields_ = [("slot", _U32), ("flags", _U32), ("gpa", _U64), ("size", _U64), ("userspace", _U64)]


class MpState(ctypes.Structure):
    """struct kvm_mp_state."""

    _fields_ = [("state", _U32)]


class _Xcr(ctypes.Structure):
    _fields_ = [("xcr", _U32), ("reserved", _U32), ("value", _U64)]


class Xcrs(ctypes.Structure):
    """struct kvm_xcrs."""

    _fields_ = [("nr_xcrs", _U32), ("flags", _U32), ("xcrs", _Xcr * 16), ("padding", _U64 * 16)]


class Io(ctypes.Structure):
    """kvm_run.io: direction 0 in, 1 out; the data lie `data_offset` bytes after the start of kvm_run."""

    _fields_ = [("direction", _U8), ("size", _U8), ("port", _U16), ("count", _U32), ("data_offset", _U64)]


class _ExitData(ctypes.Union):
    _fields_ = [("io", Io), ("padding", _U8 * 256)]


class Run(ctypes.Structure):
    """The head of struct kvm_run."""

    _anonymous_ = ("exit",)
    _fields_ = [
        ("request_interrupt_window", _U8),
        ("immediate_exit", _U8),
        ("padding1", _U8 * 6),
        ("exit_reason", _U32),
        ("ready_for_interrupt_injection", _U8),
        ("if_flag", _U8),
        ("flags", _U16),
        ("cr8", _U64),
        ("apic_base", _U64),
        ("exit", _ExitData),
    ]


class _Header(ctypes.Structure):
    """struct kvm_msrs, struct kvm_cpuid2: a count, then the entries."""

    _fields_ = [("count", _U32), ("pad", _U32)]


def msrs(count: int) -> type[ctypes.Structure]:
    """struct kvm_msrs with so many entries."""
    return type("Msrs", (ctypes.Structure,), {"_fields_": [("head", _Header), ("entries", MsrEntry * count)]})


def cpuid2(count: int) -> type[ctypes.Structure]:
    """struct kvm_cpuid2 with room for so many entries."""
    return type("Cpuid2", (ctypes.Structure,), {"_fields_": [("head", _Header), ("entries", CpuidEntry * count)]})


class Exit(enum.IntEnum):
    """kvm_run.exit_reason."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24


class Cap(enum.IntEnum):
    """Capabilities of KVM_CHECK_EXTENSION."""

    MULTI_ADDRESS_SPACE = 118
    NESTED_STATE = 157
    SREGS2 = 200
    DISABLE_QUIRKS2 = 213


_KVMIO: Final = 0xAE
_WRITE, _READ = 1, 2


def _request(direction: int, number: int, size: int = 0) -> int:
    """asm-generic/ioctl.h: two bits of direction, fourteen of size, eight of type, eight of number."""
    return direction << 30 | size << 16 | _KVMIO << 8 | number


class Ioctl(enum.IntEnum):
    """Request numbers."""

    GET_API_VERSION = _request(0, 0x00)
    CREATE_VM = _request(0, 0x01)
    CHECK_EXTENSION = _request(0, 0x03)
    GET_VCPU_MMAP_SIZE = _request(0, 0x04)
    GET_SUPPORTED_CPUID = _request(_READ | _WRITE, 0x05, ctypes.sizeof(_Header))
    CREATE_VCPU = _request(0, 0x41)
    SET_USER_MEMORY_REGION = _request(_WRITE, 0x46, ctypes.sizeof(MemoryRegion))
    SET_TSS_ADDR = _request(0, 0x47)
    RUN = _request(0, 0x80)
    GET_REGS = _request(_READ, 0x81, ctypes.sizeof(Regs))
    SET_REGS = _request(_WRITE, 0x82, ctypes.sizeof(Regs))
    GET_MSRS = _request(_READ | _WRITE, 0x88, ctypes.sizeof(_Header))
    SET_MSRS = _request(_WRITE, 0x89, ctypes.sizeof(_Header))
    SET_CPUID2 = _request(_WRITE, 0x90, ctypes.sizeof(_Header))
    GET_MP_STATE = _request(_READ, 0x98, ctypes.sizeof(MpState))
    SET_MP_STATE = _request(_WRITE, 0x99, ctypes.sizeof(MpState))
    GET_VCPU_EVENTS = _request(_READ, 0x9F, ctypes.sizeof(Events))
    SET_VCPU_EVENTS = _request(_WRITE, 0xA0, ctypes.sizeof(Events))
    GET_DEBUGREGS = _request(_READ, 0xA1, ctypes.sizeof(DebugRegs))
    SET_DEBUGREGS = _request(_WRITE, 0xA2, ctypes.sizeof(DebugRegs))
    GET_XSAVE = _request(_READ, 0xA4, 4096)
    SET_XSAVE = _request(_WRITE, 0xA5, 4096)
    GET_XCRS = _request(_READ, 0xA6, ctypes.sizeof(Xcrs))
    SET_XCRS = _request(_WRITE, 0xA7, ctypes.sizeof(Xcrs))
    SMI = _request(0, 0xB7)
    # The size is that of struct kvm_nested_state without its page.
    GET_NESTED_STATE = _request(_READ | _WRITE, 0xBE, 128)
    SET_NESTED_STATE = _request(_WRITE, 0xBF, 128)
    GET_SREGS2 = _request(_READ, 0xCC, ctypes.sizeof(Sregs2))
    SET_SREGS2 = _request(_WRITE, 0xCD, ctypes.sizeof(Sregs2))
