# SPDX-License-Identifier: GPL-2.0-or-later
"""Segment registers: the VMCB's packed attributes, QEMU's descriptor flags, and a readable description.

=========  =====  =============  =====
meaning    VMCB   QEMU flags     APM
=========  =====  =============  =====
type       3:0    11:8           Type
S          4      12             S
DPL        6:5    14:13          DPL
P          7      15             P
AVL        8      20             AVL
L          9      21             L
D/B        10     22             D, B
G          11     23             G
=========  =====  =============  =====

Sources: Linux 7.3 arch/x86/include/asm/svm.h, SVM_SELECTOR_*; QEMU 10.2.2 target/i386/cpu.h, DESC_*;
APM vol. 2 section 15.5.1 and 4.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qmpfilter.svm.vmcb import SAVE
from qmpfilter.value_class import value_class
from qmpfilter.wire import cpu

__all__ = [
    "ATTRIB_DPL",
    "ATTRIB_G",
    "ATTRIB_MASK",
    "NORMALISED",
    "QEMU_NAMES",
    "Segment",
    "attrib_to_flags",
    "flags_to_attrib",
]

ATTRIB_MASK: Final = 0xFFF
ATTRIB_DPL: Final = 3 << 5
ATTRIB_G: Final = 1 << 11

QEMU_NAMES: Final[Mapping[str, str]] = {"gdtr": "gdt", "idtr": "idt", "ldtr": "ldt"}
"""The VMCB's segment names where the cpu section's differ."""

NORMALISED: Final[Mapping[str, int]] = {
    "es": ATTRIB_G | 1, "cs": ATTRIB_G, "ss": ATTRIB_G, "ds": ATTRIB_G | 1,
    "fs": ATTRIB_G | 1, "gs": ATTRIB_G | 1, "ldtr": ATTRIB_G, "tr": ATTRIB_G | 2,
}  # fmt: skip
"""The attribute bits that KVM recomputes between VMCB and the vCPU's registers, so no difference when they
differ: G always, the accessed bit of data segments, TR's busy bit (Linux 7.3 svm.c, svm_get_segment)."""

# APM vol. 2 sections 4.7.4 and 4.8.3: descriptors with S clear.
_SYSTEM_TYPES: Final[Mapping[int, str]] = {
    0x1: "available 16-bit TSS",
    0x2: "LDT",
    0x3: "busy 16-bit TSS",
    0x9: "available TSS",
    0xB: "busy TSS",
}


def attrib_to_flags(attrib: int) -> int:
    """QEMU's SegmentCache.flags of a VMCB attribute word; its unused bits 15:12 are dropped."""
    return (attrib & 0xFF) << 8 | (attrib & 0xF00) << 12


def flags_to_attrib(flags: int) -> int:
    """The VMCB attribute word of QEMU's SegmentCache.flags; base and limit nibbles in flags are dropped."""
    return flags >> 8 & 0xFF | flags >> 12 & 0xF00


@value_class
class Segment:
    """One segment register as the VMCB holds it.

    :param selector: 16 bits
    :param base: linear address
    :param limit: in bytes, already scaled by G
    :param attrib: VMCB attribute word, bits 11:0
    """

    selector: int
    base: int
    limit: int
    attrib: int

    @classmethod
    def from_save(cls, data: bytes | bytearray | memoryview, name: str, base: int = 0) -> Segment:
        """Read segment `name` (``"es"`` .. ``"tr"``) of the save area that starts at `data[base]`."""
        return cls(
            selector=SAVE.get(data, f"{name}_selector", base),
            base=SAVE.get(data, f"{name}_base", base),
            limit=SAVE.get(data, f"{name}_limit", base),
            attrib=SAVE.get(data, f"{name}_attrib", base),
        )

    @classmethod
    def from_cpu(cls, block: bytes | bytearray | memoryview, name: str) -> Segment:
        """Read segment `name`, by the VMCB's name, of the cpu section's field block; the attributes come
        from its flags."""
        prefix = QEMU_NAMES.get(name, name)
        return cls(
            selector=cpu.BLOCK.get(block, f"{prefix}_selector"),
            base=cpu.BLOCK.get(block, f"{prefix}_base"),
            limit=cpu.BLOCK.get(block, f"{prefix}_limit"),
            attrib=flags_to_attrib(cpu.BLOCK.get(block, f"{prefix}_flags")),
        )

    @property
    def type(self) -> int:
        """The descriptor's four type bits."""
        return self.attrib & 0xF

    @property
    def s(self) -> bool:
        """True for code and data, False for system segments."""
        return bool(self.attrib & 1 << 4)

    @property
    def dpl(self) -> int:
        """Descriptor privilege level."""
        return (self.attrib & ATTRIB_DPL) >> 5

    @property
    def p(self) -> bool:
        """Present; a segment that is not is what KVM calls unusable."""
        return bool(self.attrib & 1 << 7)

    @property
    def avl(self) -> bool:
        """The bit that is left to software."""
        return bool(self.attrib & 1 << 8)

    @property
    def l(self) -> bool:  # noqa: E743 (the architecture's name)
        """64-bit code."""
        return bool(self.attrib & 1 << 9)

    @property
    def db(self) -> bool:
        """Default operand size (code) or stack size (data) of 32 bits."""
        return bool(self.attrib & 1 << 10)

    @property
    def g(self) -> bool:
        """Granularity of 4 KiB; KVM recomputes it from the limit."""
        return bool(self.attrib & ATTRIB_G)

    @property
    def type_name(self) -> str:
        """The type in words: ``code r-x``, ``data rw- expand-down``, ``busy TSS`` ..."""
        if not self.s:
            return _SYSTEM_TYPES.get(self.type, f"system type {self.type:#x}") if self.attrib else "null"
        middle, accessed = self.type >> 1 & 1, " accessed" if self.type & 1 else ""
        if self.type & 8:
            return f"code {'r' if middle else '-'}-x{' conforming' if self.type & 4 else ''}{accessed}"
        return f"data r{'w' if middle else '-'}-{' expand-down' if self.type & 4 else ''}{accessed}"

    def __str__(self) -> str:
        bits = " ".join(
            name for name, is_set in
            (("P", self.p), ("L", self.l), ("D/B", self.db), ("G", self.g), ("AVL", self.avl)) if is_set
        )  # fmt: skip
        return (
            f"{self.selector:04x} base {self.base:#x} limit {self.limit:#x} attrib {self.attrib:03x} "
            f"({self.type_name}, DPL {self.dpl}{', ' + bits if bits else ''})"
        )
