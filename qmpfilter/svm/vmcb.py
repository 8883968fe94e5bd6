# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMCB: its two areas field by field, the bits inside them, and who saves and loads each register.

A VMCB image is one page of 4096 bytes: the control area at page+0x000, the save area at page+0x400,
all little-endian. In KVM's legacy nested state the control area is VMCB12's, but the save area is
L1's; see :mod:`qmpfilter.svm.legacy`.

Sources: Linux 7.3 arch/x86/include/asm/svm.h (struct vmcb_control_area, struct vmcb_save_area), whose
names are used throughout, and AMD64 Architecture Programmer's Manual (APM) volume 2, appendix B.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntFlag
from types import MappingProxyType
from typing import Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64sl, Int64ul

from qmpfilter.layout import Field, Layout
from qmpfilter.wire.cpu import VMCB_PAGE_SIZE

__all__ = [
    "CONTROL",
    "CONTROL_SIZE",
    "EXCEPTIONS",
    "INTERCEPTS",
    "INTERCEPT_WORDS",
    "PAGE_SIZE",
    "REGISTERS",
    "SAVE",
    "SAVE_OFFSET",
    "SAVE_SIZE",
    "SEGMENTS",
    "Clean",
    "EventInjection",
    "IntCtl",
    "IntState",
    "MiscCtl",
    "MiscCtl2",
    "RegisterClass",
    "intercepts",
    "named_bits",
    "registers",
    "save_fields",
]

PAGE_SIZE: Final = VMCB_PAGE_SIZE
CONTROL_SIZE: Final = 0x400
SAVE_OFFSET: Final = CONTROL_SIZE
# The kernel's struct ends at 0x2e8 (5.x: 0x408, with GHCB fields that VMCBs of this kind leave zero).
SAVE_SIZE: Final = 0x300

# enum intercept_words, in order; word N stands at page + 4 * N.
INTERCEPT_WORDS: Final = (
    "intercept_cr",
    "intercept_dr",
    "intercept_exception",
    "intercept_word3",
    "intercept_word4",
    "intercept_word5",
)

SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr")

# --- control area ------------------------------------------------------------------------------

# fmt: off
CONTROL: Final = Layout(
    "vmcb_control_area",
    "Linux 7.3 arch/x86/include/asm/svm.h; APM vol. 2 table B-1",
    [
        Field(0x000, "intercept_cr", Int32ul, "low half: CR reads, high half: CR writes"),
        Field(0x004, "intercept_dr", Int32ul, "low half: DR reads, high half: DR writes"),
        Field(0x008, "intercept_exception", Int32ul, "bit N: exception vector N"),
        Field(0x00C, "intercept_word3", Int32ul),
        Field(0x010, "intercept_word4", Int32ul, "bit 0, VMRUN, must be set"),
        Field(0x014, "intercept_word5", Int32ul, "not copied by Linux 5.8"),
        Field(0x03C, "pause_filter_thresh", Int16ul),
        Field(0x03E, "pause_filter_count", Int16ul),
        Field(0x040, "iopm_base_pa", Int64ul, "L1 GPA of the I/O permission map, 12 KiB; bits 11:0 ignored"),
        Field(0x048, "msrpm_base_pa", Int64ul, "L1 GPA of the MSR permission map, 8 KiB; bits 11:0 ignored"),
        Field(0x050, "tsc_offset", Int64sl, "L2's TSC relative to L1's, in ticks"),
        Field(0x058, "asid", Int32ul, "must not be 0"),
        Field(0x05C, "tlb_ctl", Int8ul, "flush: 0 nothing, 1 all, 3 this ASID, 7 its non-global entries"),
        Field(0x05D, "erap_ctl", Int8ul, "bit 0: allow a larger RAP, bit 1: clear RAP; since Linux 7.1"),
        Field(0x060, "int_ctl", Int32ul, "see IntCtl"),
        Field(0x064, "int_vector", Int32ul, "vector of the virtual interrupt, bits 7:0"),
        Field(0x068, "int_state", Int32ul, "see IntState"),
        Field(0x070, "exit_code", Int64ul, "of the previous #VMEXIT; before 7.1 exit_code and exit_code_hi"),
        Field(0x078, "exit_info_1", Int64ul, "of the previous #VMEXIT"),
        Field(0x080, "exit_info_2", Int64ul, "of the previous #VMEXIT"),
        Field(0x088, "exit_int_info", Int32ul, "of the previous #VMEXIT; encoded like event_inj"),
        Field(0x08C, "exit_int_info_err", Int32ul),
        Field(0x090, "misc_ctl", Int64ul, "see MiscCtl; nested_ctl before Linux 7.1"),
        Field(0x098, "avic_vapic_bar", Int64ul),
        Field(0x0A0, "ghcb_gpa", Int64ul, "SEV-ES"),
        Field(0x0A8, "event_inj", Int32ul, "see EventInjection"),
        Field(0x0AC, "event_inj_err", Int32ul, "error code of event_inj"),
        Field(0x0B0, "nested_cr3", Int64ul, "L1 GPA of the nested page table's root, when MiscCtl.NP is set"),
        Field(0x0B8, "misc_ctl2", Int64ul, "see MiscCtl2; virt_ext before Linux 7.1"),
        Field(0x0C0, "clean", Int32ul, "see Clean; never emitted by KVM"),
        Field(0x0C8, "next_rip", Int64ul, "since Linux 6.1 in nested state"),
        Field(0x0D0, "insn_len", Int8ul),
        Field(0x0D1, "insn_bytes", Bytes(15)),
        Field(0x0E0, "avic_backing_page", Int64ul),
        Field(0x0F0, "avic_logical_id", Int64ul),
        Field(0x0F8, "avic_physical_id", Int64ul),
        Field(0x108, "vmsa_pa", Int64ul, "SEV-ES"),
        Field(0x120, "bus_lock_counter", Int16ul, "named since Linux 6.17"),
        Field(0x138, "allowed_sev_features", Int64ul),
        Field(0x140, "guest_sev_features", Int64ul),
        # Offset 0x3e0: reserved_sw, in a union with struct hv_vmcb_enlightenments (include/hyperv/hvgdk.h).
        Field(0x3E0, "hv_enlightenments_control", Int32ul,
              "bit 0: nested_flush_hypercall, bit 1: msr_bitmap, bit 2: enlightened_npt_tlb"),
        Field(0x3E4, "hv_vp_id", Int32ul),
        Field(0x3E8, "hv_vm_id", Int64ul),
        Field(0x3F0, "partition_assist_page", Int64ul),
        Field(0x3F8, "hv_reserved", Int64ul),
    ],
    size=CONTROL_SIZE,
    gaps=True,
)
# fmt: on

# --- save area ---------------------------------------------------------------------------------


def _save_rows() -> Iterator[Field]:
    for number, name in enumerate(SEGMENTS):
        at = number * 16  # struct vmcb_seg
        yield Field(at, f"{name}_selector", Int16ul)
        yield Field(at + 2, f"{name}_attrib", Int16ul, "see qmpfilter.svm.segment; meaningless for gdtr and idtr")
        yield Field(at + 4, f"{name}_limit", Int32ul, "in bytes, already scaled by G")
        yield Field(at + 8, f"{name}_base", Int64ul)
    yield Field(0x0CA, "vmpl", Int8ul, "SEV-SNP")
    yield Field(0x0CB, "cpl", Int8ul)
    yield Field(0x0D0, "efer", Int64ul)
    yield Field(0x148, "cr4", Int64ul)
    yield Field(0x150, "cr3", Int64ul)
    yield Field(0x158, "cr0", Int64ul)
    yield Field(0x160, "dr7", Int64ul)
    yield Field(0x168, "dr6", Int64ul)
    yield Field(0x170, "rflags", Int64ul)
    yield Field(0x178, "rip", Int64ul)
    yield Field(0x1D8, "rsp", Int64ul)
    yield Field(0x1E0, "s_cet", Int64ul, "used by KVM since Linux 6.18, like ssp and isst_addr")
    yield Field(0x1E8, "ssp", Int64ul)
    yield Field(0x1F0, "isst_addr", Int64ul)
    yield Field(0x1F8, "rax", Int64ul)
    yield Field(0x200, "star", Int64ul)
    yield Field(0x208, "lstar", Int64ul)
    yield Field(0x210, "cstar", Int64ul)
    yield Field(0x218, "sfmask", Int64ul)
    yield Field(0x220, "kernel_gs_base", Int64ul)
    yield Field(0x228, "sysenter_cs", Int64ul)
    yield Field(0x230, "sysenter_esp", Int64ul)
    yield Field(0x238, "sysenter_eip", Int64ul)
    yield Field(0x240, "cr2", Int64ul)
    yield Field(0x268, "g_pat", Int64ul)
    yield Field(0x270, "dbgctl", Int64ul)
    yield Field(0x278, "br_from", Int64ul)
    yield Field(0x280, "br_to", Int64ul)
    yield Field(0x288, "last_excp_from", Int64ul)
    yield Field(0x290, "last_excp_to", Int64ul)
    yield Field(0x2E0, "spec_ctrl", Int64ul, "32 bits in Linux 6.1, absent in 5.x")


SAVE: Final = Layout(
    "vmcb_save_area",
    "Linux 7.3 arch/x86/include/asm/svm.h; APM vol. 2 table B-2",
    list(_save_rows()),
    size=SAVE_SIZE,
    gaps=True,
)


class RegisterClass(Enum):
    """Who saves and loads a register of the save area (Linux 7.3 arch/x86/kvm/svm/nested.c, svm.c)."""

    VMRUN = "VMRUN"
    """L1's copy saved and L2's loaded at VMRUN, the reverse at #VMEXIT."""
    VMRUN_SHSTK = "VMRUN with SHSTK"
    """As VMRUN, where the host has shadow stacks and runs Linux 6.18 or newer."""
    VMRUN_LBR = "VMRUN with LBR virtualization"
    """As VMRUN, where VMCB12 sets MiscCtl2.V_LBR and L1 was given LBR virtualization."""
    VMLOAD = "VMLOAD"
    """One live copy, that of vmcb01; VMRUN and #VMEXIT do not touch it."""
    L2_ONLY = "L2 only"
    """Loaded from VMCB12 and written back to it, L1's not saved; g_pat only where L2 has its own PAT."""
    OTHER = "other"
    """Not part of the switch: spec_ctrl is shared, vmpl belongs to SEV-SNP."""


_CLASSES: Final[Mapping[RegisterClass, tuple[str, ...]]] = {
    RegisterClass.VMRUN: (
        "es", "cs", "ss", "ds", "gdtr", "idtr", "cpl", "efer", "cr0", "cr3", "cr4", "rflags", "rip", "rsp",
        "rax",
    ),
    RegisterClass.VMRUN_SHSTK: ("s_cet", "ssp", "isst_addr"),
    RegisterClass.VMRUN_LBR: ("dbgctl", "br_from", "br_to", "last_excp_from", "last_excp_to"),
    RegisterClass.VMLOAD: (
        "fs", "gs", "ldtr", "tr", "kernel_gs_base", "star", "lstar", "cstar", "sfmask",
        "sysenter_cs", "sysenter_esp", "sysenter_eip",
    ),
    RegisterClass.L2_ONLY: ("cr2", "dr6", "dr7", "g_pat"),
    RegisterClass.OTHER: ("spec_ctrl", "vmpl"),
}  # fmt: skip

REGISTERS: Final[Mapping[str, RegisterClass]] = MappingProxyType(
    {register: class_ for class_, members in _CLASSES.items() for register in members}
)
"""Every register of the save area and its class; a segment counts as one register."""


def registers(*classes: RegisterClass) -> tuple[str, ...]:
    """The registers of these classes, segments as one name each (``"es"``)."""
    return tuple(register for class_ in classes for register in _CLASSES[class_])


def save_fields(register: str) -> tuple[str, ...]:
    """The fields of :data:`SAVE` that hold a register: four for a segment, one otherwise."""
    if register in SEGMENTS:
        return tuple(f"{register}_{part}" for part in ("selector", "attrib", "limit", "base"))
    return (register,)


# --- bits of control fields --------------------------------------------------------------------


class IntCtl(IntFlag):
    """int_ctl; V_TPR and V_INTR_PRIO are four bits wide. Names: svm.h, V_*_MASK and AVIC_ENABLE_MASK."""

    V_TPR = 0xF
    V_IRQ = 1 << 8
    V_GIF = 1 << 9
    V_NMI_PENDING = 1 << 11
    V_NMI_BLOCKING = 1 << 12
    V_INTR_PRIO = 0xF << 16
    V_IGN_TPR = 1 << 20
    V_INTR_MASKING = 1 << 24
    V_GIF_ENABLE = 1 << 25
    V_NMI_ENABLE = 1 << 26
    X2APIC_MODE = 1 << 30
    AVIC_ENABLE = 1 << 31


class IntState(IntFlag):
    """int_state (svm.h, SVM_INTERRUPT_SHADOW_MASK, SVM_GUEST_INTERRUPT_MASK)."""

    INTERRUPT_SHADOW = 1 << 0
    GUEST_INTERRUPT_MASK = 1 << 1


class MiscCtl(IntFlag):
    """misc_ctl (svm.h, SVM_MISC_ENABLE_*); before Linux 7.1 nested_ctl and SVM_NESTED_CTL_*."""

    NP = 1 << 0
    SEV = 1 << 1
    SEV_ES = 1 << 2
    GMET = 1 << 3


class MiscCtl2(IntFlag):
    """misc_ctl2 (svm.h, SVM_MISC2_ENABLE_*); before Linux 7.1 virt_ext."""

    V_LBR = 1 << 0
    V_VMLOAD_VMSAVE = 1 << 1


class Clean(IntFlag):
    """clean: what hardware may take from its cache instead of the VMCB (arch/x86/kvm/svm/svm.h, VMCB_*)."""

    INTERCEPTS = 1 << 0
    PERM_MAP = 1 << 1
    ASID = 1 << 2
    INTR = 1 << 3
    NPT = 1 << 4
    CR = 1 << 5
    DR = 1 << 6
    DT = 1 << 7
    SEG = 1 << 8
    CR2 = 1 << 9
    LBR = 1 << 10
    AVIC = 1 << 11
    CET = 1 << 12
    SW = 1 << 31


def named_bits(flags: type[IntFlag], value: int) -> list[str]:
    """What is set in `value`, in ascending order: ``V_IRQ`` for a bit, ``V_TPR=0x3`` for a wider field,
    ``bit 7`` for a bit that `flags` does not name."""
    found: list[tuple[int, str]] = []
    for name, member in flags.__members__.items():
        mask = member.value
        low = (mask & -mask).bit_length() - 1
        if value & mask:
            single = mask == 1 << low
            found.append((low, name if single else f"{name}={(value & mask) >> low:#x}"))
            value &= ~mask
    found += [(bit, f"bit {bit}") for bit in _set_bits(value)]
    return [text for _, text in sorted(found)]


# --- intercepts --------------------------------------------------------------------------------

EXCEPTIONS: Final[Mapping[int, str]] = MappingProxyType({
    0: "#DE", 1: "#DB", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
    12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 21: "#CP", 28: "#HV",
    29: "#VC", 30: "#SX",
})  # fmt: skip
"""Defined exception vectors (arch/x86/include/uapi/asm/kvm.h, APM vol. 2 section 8.2)."""

_WORD3 = (
    "INTR", "NMI", "SMI", "INIT", "VINTR", "SELECTIVE_CR0",
    "STORE_IDTR", "STORE_GDTR", "STORE_LDTR", "STORE_TR", "LOAD_IDTR", "LOAD_GDTR", "LOAD_LDTR", "LOAD_TR",
    "RDTSC", "RDPMC", "PUSHF", "POPF", "CPUID", "RSM", "IRET", "INTn", "INVD", "PAUSE", "HLT", "INVLPG",
    "INVLPGA", "IOIO_PROT", "MSR_PROT", "TASK_SWITCH", "FERR_FREEZE", "SHUTDOWN",
)  # fmt: skip
_WORD4 = (
    "VMRUN", "VMMCALL", "VMLOAD", "VMSAVE", "STGI", "CLGI", "SKINIT", "RDTSCP", "ICEBP", "WBINVD", "MONITOR",
    "MWAIT", "MWAIT_COND", "XSETBV", "RDPRU",
)  # fmt: skip
_WORD5 = ("INVLPGB", "INVLPGB_ILLEGAL", "INVPCID", "MCOMMIT", "TLBSYNC", "BUSLOCK", "IDLE_HLT")


def _intercept_rows() -> Iterator[tuple[tuple[int, int], str]]:
    for word, register in enumerate(("CR", "DR")):
        for number in range(16):
            yield (word, number), f"read {register}{number}"
            yield (word, 16 + number), f"write {register}{number}"
    for vector, name in EXCEPTIONS.items():
        yield (2, vector), f"{name} ({vector})"
    for word, names in ((3, _WORD3), (4, _WORD4), (5, _WORD5)):
        for bit, name in enumerate(names):
            yield (word, bit), f"INTERCEPT_{name}"
    yield (4, 15), "TRAP_EFER_WRITE"
    for number in range(16):
        yield (4, 16 + number), f"TRAP_CR{number}_WRITE"


INTERCEPTS: Final[Mapping[tuple[int, int], str]] = MappingProxyType(dict(_intercept_rows()))
"""(word, bit) of each intercept and its name: the kernel's for words 3 to 5 (svm.h, INTERCEPT_*, TRAP_*)."""


def intercepts(control: bytes | bytearray | memoryview) -> list[str]:
    """Names of the intercepts set in a control area, in the order of its bits; one without a name is
    given as ``word 5 bit 31``."""
    return [
        INTERCEPTS.get((word, bit), f"word {word} bit {bit}")
        for word, name in enumerate(INTERCEPT_WORDS)
        for bit in _set_bits(CONTROL.get(control, name))
    ]


# --- event injection ---------------------------------------------------------------------------

_EVENT_VALID: Final = 1 << 31
_EVENT_HAS_ERROR: Final = 1 << 11
# SVM_EVTINJ_TYPE_*, spelt as in the kernel.
_EVENT_TYPES: Final[Mapping[int, str]] = {0: "INTR", 2: "NMI", 3: "EXEPT", 4: "SOFT"}


@dataclass(frozen=True, slots=True)
class EventInjection:
    """event_inj or exit_int_info, decoded (svm.h, SVM_EVTINJ_*; APM vol. 2 section 15.20).

    :param valid: bit 31; nothing else means anything when clear
    :param vector: bits 7:0
    :param type: the kernel's name of bits 10:8: INTR, NMI, EXEPT, SOFT, or ``reserved N``
    :param error_code: the pushed error code, None when bit 11 is clear
    """

    valid: bool
    vector: int
    type: str
    error_code: int | None

    @classmethod
    def decode(cls, event: int, error_code: int) -> EventInjection:
        """Decode the pair event_inj and event_inj_err, or exit_int_info and exit_int_info_err."""
        type_ = event >> 8 & 7
        return cls(
            valid=bool(event & _EVENT_VALID),
            vector=event & 0xFF,
            type=_EVENT_TYPES.get(type_, f"reserved {type_}"),
            error_code=error_code if event & _EVENT_HAS_ERROR else None,
        )

    @classmethod
    def from_control(cls, control: bytes | bytearray | memoryview) -> EventInjection:
        """What a control area injects, whether valid or not."""
        return cls.decode(CONTROL.get(control, "event_inj"), CONTROL.get(control, "event_inj_err"))

    def __str__(self) -> str:
        if not self.valid:
            return "none"
        name = f" {EXCEPTIONS[self.vector]}" if self.type == "EXEPT" and self.vector in EXCEPTIONS else ""
        error = "" if self.error_code is None else f", error code {self.error_code:#x}"
        return f"{self.type}{name} vector {self.vector:#x}{error}"


def _set_bits(value: int) -> Iterator[int]:
    return (bit for bit in range(value.bit_length()) if value >> bit & 1)
