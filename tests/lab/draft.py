# SPDX-License-Identifier: GPL-2.0-or-later
"""A real vCPU's nested state and section, to be changed field by field, and what QEMU would make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from struct import Struct

from qmpfilter.kvm.uapi import Segment, Sregs2
from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L1, LegacyState, StateFlags
from qmpfilter.svm.section import CpuSection
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET
from qmpfilter.verdict.attempt import Attempt
from qmpfilter.wire import cpu
from tests.helpers.fixtures import fixtures
from tests.helpers.vcpus import sections_of

#: struct kvm_nested_state up to vmcb_pa (arch/x86/include/uapi/asm/kvm.h).
HEADER = Struct("<HHIQ")
_PDPTRS_VALID = 1
_RFLAGS_VM = 1 << 17


@dataclass
class Draft:
    """`table` names the CPUID table that the vCPU is to have."""

    block: bytearray
    subsections: dict[str, bytes]
    flags: int
    format: int
    size: int
    vmcb_pa: int
    page: bytearray | None
    table: str

    @classmethod
    def of(cls, section: CpuSection, table: str) -> Draft:
        """The draft that changes nothing."""
        nested = section.nested or LegacyState(StateFlags.GIF_SET, FORMAT_SVM, SIZE_L1, 0, None)
        page = None if nested.page is None else bytearray(nested.page)
        return cls(bytearray(section.block), dict(section.subsections), nested.flags, nested.format, nested.size,
                   nested.vmcb_pa, page, table)  # fmt: skip

    def copy(self) -> Draft:
        """One that can be changed on its own."""
        page = None if self.page is None else bytearray(self.page)
        return replace(self, block=bytearray(self.block), subsections=dict(self.subsections), page=page)

    def get(self, field: str) -> int:
        """A field by its name in the rules: ``cpu.cr4``, ``control.asid``, ``l1.efer``, ``nested_state.size``."""
        area, name = field.split(".")
        match area:
            case "cpu":
                return cpu.BLOCK.get(self.block, name)
            case "control":
                return CONTROL.get(self._page, name)
            case "l1":
                return SAVE.get(self._page, name, SAVE_OFFSET)
        return int(getattr(self, name))

    def put(self, field: str, value: int) -> None:
        """The same, the other way; bits that the field does not have are dropped."""
        area, name = field.split(".")
        match area:
            case "cpu":
                cpu.BLOCK.put(self.block, name, value & self._mask(cpu.BLOCK.fields[name].size))
            case "control":
                CONTROL.put(self._page, name, self._signed(name, value))
            case "l1":
                SAVE.put(self._page, name, value & self._mask(SAVE.fields[name].size), SAVE_OFFSET)
            case _:
                setattr(self, name, value)

    def set_bits(self, field: str, bits: int) -> None:
        """Set some bits of a field."""
        self.put(field, self.get(field) | bits)

    def clear_bits(self, field: str, bits: int) -> None:
        """Clear some bits of a field."""
        self.put(field, self.get(field) & ~bits)

    @property
    def in_l2(self) -> bool:
        """It has a page, so that it can be in L2."""
        return self.page is not None

    @property
    def state(self) -> LegacyState:
        """The nested state as it would stand in a stream."""
        page = None if self.page is None else bytes(self.page)
        return LegacyState(self.flags, self.format, self.size, self.vmcb_pa, page)

    @property
    def _page(self) -> bytearray:
        assert self.page is not None
        return self.page

    @staticmethod
    def _mask(size: int) -> int:
        return (1 << 8 * size) - 1

    def _signed(self, name: str, value: int) -> int:
        value &= self._mask(CONTROL.fields[name].size)
        return value - (1 << 64) if CONTROL.is_signed(name) and value >> 63 else value


def recorded() -> list[Draft]:
    """Every different vCPU of all the recordings, those in L2 first."""
    found: dict[bytes, Draft] = {}
    for fixture in fixtures():
        for section in sections_of(fixture.file("stream")):
            draft = Draft.of(section, "")
            found.setdefault(bytes(draft.page or b"") + draft.block, draft)
    return sorted(found.values(), key=lambda draft: not draft.in_l2)


def blob(attempt: Attempt) -> bytes:
    """What KVM_SET_NESTED_STATE would get."""
    state = attempt.state
    assert state.page is not None
    header = HEADER.pack(state.flags, state.format, state.size, state.vmcb_pa)
    return header.ljust(SIZE_L1, b"\0") + state.page


def registers(draft: Draft) -> bytes:
    """What KVM_SET_SREGS2 would get (QEMU 7.2 target/i386/kvm/kvm.c, kvm_put_sregs2), without the APIC's share."""
    sregs = Sregs2()
    virtual_8086 = draft.get("cpu.rflags") & _RFLAGS_VM
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"):
        segment = _segment(draft, name)
        if virtual_8086 and name not in ("tr", "ldt"):
            segment.type, segment.present, segment.dpl, segment.s = 3, 1, 3, 1
            segment.db = segment.l = segment.g = segment.avl = segment.unusable = 0
        setattr(sregs, name, segment)
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        table.base, table.limit = draft.get(f"cpu.{name}_base"), draft.get(f"cpu.{name}_limit") & 0xFFFF
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        setattr(sregs, name, draft.get(f"cpu.{name}"))
    if (pdptrs := draft.subsections.get("cpu/pdptrs")) is not None:
        sregs.flags = _PDPTRS_VALID
        for number, at in enumerate(range(0, 32, 8)):
            sregs.pdptrs[number] = int.from_bytes(pdptrs[at : at + 8])
    return bytes(sregs)


def _segment(draft: Draft, name: str) -> Segment:
    flags = draft.get(f"cpu.{name}_flags")
    present = flags >> 15 & 1
    return Segment(
        base=draft.get(f"cpu.{name}_base"),
        limit=draft.get(f"cpu.{name}_limit"),
        selector=draft.get(f"cpu.{name}_selector") & 0xFFFF,
        type=flags >> 8 & 15,
        present=present,
        dpl=flags >> 13 & 3,
        db=flags >> 22 & 1,
        s=flags >> 12 & 1,
        l=flags >> 21 & 1,
        g=flags >> 23 & 1,
        avl=flags >> 20 & 1,
        unusable=1 - present,
    )


def emitted(page: bytes) -> Iterator[tuple[str, int]]:
    """The fields of a control area that kernels give back, by name."""
    for name in CONTROL.fields:
        if name not in _NOT_EMITTED:
            yield name, CONTROL.get(page, name)


# Never given back by KVM_GET_NESTED_STATE (Linux 6.1 to 7.3 nested_copy_vmcb_cache_to_control).
_NOT_EMITTED = frozenset((
    "avic_vapic_bar", "ghcb_gpa", "clean", "insn_len", "insn_bytes", "avic_backing_page", "avic_logical_id",
    "avic_physical_id", "vmsa_pa", "bus_lock_counter", "allowed_sev_features", "guest_sev_features",
    "hv_enlightenments_control", "hv_vp_id", "hv_vm_id", "partition_assist_page", "hv_reserved",
))  # fmt: skip
