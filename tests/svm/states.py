# SPDX-License-Identifier: GPL-2.0-or-later
"""One good nested state and its section, to be changed field by field.

L1 and L2 are both 64-bit kernels; the page is as Linux 5.13 and newer write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L1, SIZE_L2, LegacyState, StateFlags
from qmpfilter.svm.segment import attrib_to_flags
from qmpfilter.svm.vmcb import CONTROL, PAGE_SIZE, SAVE, SAVE_OFFSET
from qmpfilter.wire import cpu

VMCB_PA = 0x3F_7000

CONTROL_FIELDS: Mapping[str, int] = {
    "intercept_word4": 0x3,
    "iopm_base_pa": 0x10_0000,
    "msrpm_base_pa": 0x10_4000,
    "asid": 1,
}

# The VMLOAD class, the same in the page and in the section: (page, section) names and the value.
LIVE_FIELDS: Mapping[tuple[str, str], int] = {
    ("fs_selector", "fs_selector"): 0x0,
    ("fs_base", "fs_base"): 0x7F00_1234_5000,
    ("fs_limit", "fs_limit"): 0xFFFF_FFFF,
    ("gs_selector", "gs_selector"): 0x10,
    ("gs_base", "gs_base"): 0xFFFF_8880_0000_0000,
    ("gs_limit", "gs_limit"): 0xFFFF_FFFF,
    ("ldtr_limit", "ldt_limit"): 0xFFFF,
    ("tr_selector", "tr_selector"): 0x40,
    ("tr_base", "tr_base"): 0xFFFF_FE00_0000_3000,
    ("tr_limit", "tr_limit"): 0x206F,
    ("star", "star"): 0x23_0010_0000_0000,
    ("lstar", "lstar"): 0xFFFF_FFFF_8200_0080,
    ("cstar", "cstar"): 0xFFFF_FFFF_8200_1580,
    ("sfmask", "fmask"): 0x25_7FD5,
    ("kernel_gs_base", "kernelgsbase"): 0x7F00_0000_1000,
    ("sysenter_cs", "sysenter_cs"): 0x10,
    ("sysenter_esp", "sysenter_esp"): 0x5000,
    ("sysenter_eip", "sysenter_eip"): 0x8200_2000,
}
LIVE_ATTRIBS: Mapping[str, int] = {"fs": 0xC93, "gs": 0xC93, "ldtr": 0x082, "tr": 0x08B}

L1_FIELDS: Mapping[str, int] = {
    "cs_selector": 0x10,
    "cs_attrib": 0xA9B,
    "cs_limit": 0xFFFF_FFFF,
    "ss_selector": 0x18,
    "ss_attrib": 0xC93,
    "ss_limit": 0xFFFF_FFFF,
    "efer": 0x1D01,
    "cr4": 0x4_1220,
    "cr3": 0x40_0000,
    "cr0": 0x8005_0033,
    "dr7": 0x400,
    "dr6": 0xFFFF_0FF0,
    "rflags": 0x2,
    "rip": 0xFFFF_FFFF_8100_0123,
    "rsp": 0xFFFF_C900_0000_3F00,
    "rax": VMCB_PA,
    "g_pat": 0x0007_0406_0007_0406,
    **{in_save: value for (in_save, _), value in LIVE_FIELDS.items()},
    **{f"{name}_attrib": attrib for name, attrib in LIVE_ATTRIBS.items()},
}

CPU_FIELDS: Mapping[str, int] = {
    "rip": 0x40_1000,
    "rflags": 0x202,
    "hflags": cpu.HF_GUEST,
    "hflags2": cpu.HF2_GIF,
    "cs_selector": 0x8,
    "cs_limit": 0xFFFF_FFFF,
    "cs_flags": attrib_to_flags(0xA9B),
    "ss_selector": 0x10,
    "ss_limit": 0xFFFF_FFFF,
    "ss_flags": attrib_to_flags(0xC93),
    "cr0": 0x8000_0011,
    "cr3": 0x1000,
    "cr4": 0x20,
    "dr6": 0xFFFF_0FF0,
    "dr7": 0x400,
    "efer": 0x1500,
    "pat": 0x0007_0406_0007_0406,
    "interrupt_injected": -1,
    "exception_nr": -1,
    **{in_block: value for (_, in_block), value in LIVE_FIELDS.items()},
    "fs_flags": attrib_to_flags(LIVE_ATTRIBS["fs"]),
    "gs_flags": attrib_to_flags(LIVE_ATTRIBS["gs"]),
    "ldt_flags": attrib_to_flags(LIVE_ATTRIBS["ldtr"]),
    "tr_flags": attrib_to_flags(LIVE_ATTRIBS["tr"]),
}

SUBSECTIONS = frozenset({"cpu/nested_state", "cpu/pdptrs"})


def page(control: Mapping[str, int] | None = None, l1: Mapping[str, int] | None = None) -> bytes:
    """The good VMCB page with some fields of its control area and of L1's save area changed."""
    built = bytearray(PAGE_SIZE)
    for name, value in {**CONTROL_FIELDS, **(control or {})}.items():
        CONTROL.put(built, name, value)
    for name, value in {**L1_FIELDS, **(l1 or {})}.items():
        SAVE.put(built, name, value, SAVE_OFFSET)
    return bytes(built)


def block(changes: Mapping[str, int] | None = None) -> bytes:
    """The good field block of the section with some fields changed."""
    built = bytearray(cpu.BLOCK.size)
    for name, value in {**CPU_FIELDS, **(changes or {})}.items():
        cpu.BLOCK.put(built, name, value)
    return bytes(built)


@dataclass(frozen=True)
class Case:
    """The good state with L2 active, and what to change in it."""

    control: Mapping[str, int] = field(default_factory=dict)
    l1: Mapping[str, int] = field(default_factory=dict)
    cpu: Mapping[str, int] = field(default_factory=dict)
    flags: int = StateFlags.GUEST_MODE | StateFlags.GIF_SET
    format: int = FORMAT_SVM
    size: int = SIZE_L2
    vmcb_pa: int = VMCB_PA
    has_page: bool = True
    subsections: frozenset[str] = SUBSECTIONS

    @property
    def state(self) -> LegacyState:
        """The nested state."""
        built = page(self.control, self.l1) if self.has_page else None
        return LegacyState(self.flags, self.format, self.size, self.vmcb_pa, built)

    @property
    def block(self) -> bytes:
        """The section's field block."""
        return block(self.cpu)


def outside_l2(
    *, flags: int = StateFlags.GIF_SET, size: int = SIZE_L1, has_page: bool = False, hflags: int = 0
) -> Case:
    """The good state while L1 runs."""
    return Case(flags=flags, size=size, has_page=has_page, vmcb_pa=VMCB_PA if has_page else 0, cpu={"hflags": hflags})
