# SPDX-License-Identifier: GPL-2.0-or-later
"""A table of CPUID leaves as KVM_GET_SUPPORTED_CPUID gives it, and the features that KVM asks it for.

Sources: AMD64 Architecture Programmer's Manual volume 3, appendix E; Linux 7.3
arch/x86/include/asm/cpufeatures.h and arch/x86/kvm/cpuid.c (cpuid_query_maxphyaddr).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

__all__ = ["FEATURES", "Cpuid", "CpuidRow", "FeatureBit"]

# KVM_CPUID_FLAG_SIGNIFCANT_INDEX (arch/x86/include/uapi/asm/kvm.h).
_INDEXED: Final = 1
_ADDRESS_SIZES: Final = 0x8000_0008
_DEFAULT_MAXPHYADDR: Final = 36


@dataclass(frozen=True, slots=True)
class CpuidRow:
    """struct kvm_cpuid_entry2 without its padding."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True)
class FeatureBit:
    """Where a feature stands: leaf, subleaf, register, bit."""

    function: int
    index: int
    register: str
    bit: int


# fmt: off
FEATURES: Final[Mapping[str, FeatureBit]] = MappingProxyType({
    # CR4
    "XSAVE": FeatureBit(1, 0, "ecx", 26),
    "PCID": FeatureBit(1, 0, "ecx", 17),
    "FSGSBASE": FeatureBit(7, 0, "ebx", 0),
    "SMEP": FeatureBit(7, 0, "ebx", 7),
    "SMAP": FeatureBit(7, 0, "ebx", 20),
    "PKU": FeatureBit(7, 0, "ecx", 3),
    "UMIP": FeatureBit(7, 0, "ecx", 2),
    "LA57": FeatureBit(7, 0, "ecx", 16),
    "VMX": FeatureBit(1, 0, "ecx", 5),
    "SHSTK": FeatureBit(7, 0, "ecx", 7),
    "IBT": FeatureBit(7, 0, "edx", 20),
    "LAM": FeatureBit(7, 1, "eax", 26),
    # EFER
    "LM": FeatureBit(0x8000_0001, 0, "edx", 29),
    "NX": FeatureBit(0x8000_0001, 0, "edx", 20),
    "FXSR_OPT": FeatureBit(0x8000_0001, 0, "edx", 25),
    "SVM": FeatureBit(0x8000_0001, 0, "ecx", 2),
    "EFER_LMSLE_MBZ": FeatureBit(0x8000_0008, 0, "ebx", 20),
    "AUTOIBRS": FeatureBit(0x8000_0021, 0, "eax", 8),
    # SVM
    "NPT": FeatureBit(0x8000_000A, 0, "edx", 0),
    "LBRV": FeatureBit(0x8000_000A, 0, "edx", 1),
    "NRIPS": FeatureBit(0x8000_000A, 0, "edx", 3),
    "VGIF": FeatureBit(0x8000_000A, 0, "edx", 16),
    "GMET": FeatureBit(0x8000_000A, 0, "edx", 17),
    "VNMI": FeatureBit(0x8000_000A, 0, "edx", 25),
    "SEV_ES": FeatureBit(0x8000_001F, 0, "eax", 3),
    # intercepts
    "RDTSCP": FeatureBit(0x8000_0001, 0, "edx", 27),
    "SKINIT": FeatureBit(0x8000_0001, 0, "ecx", 12),
    "INVPCID": FeatureBit(7, 0, "ebx", 10),
    "RDPRU": FeatureBit(0x8000_0008, 0, "ebx", 4),
})
# fmt: on
"""The features that some check asks for, under the kernel's names without X86_FEATURE_."""


@dataclass(frozen=True)
class Cpuid:
    """One CPUID table.

    :param rows: in the order of the ioctl
    """

    rows: tuple[CpuidRow, ...]

    def row(self, function: int, index: int = 0) -> CpuidRow | None:
        """The row that KVM finds for a leaf; None if there is none."""
        for row in self.rows:
            if row.function == function and (not row.flags & _INDEXED or row.index == index):
                return row
        return None

    def has(self, feature: str) -> bool:
        """Whether a feature of :data:`FEATURES` is there.

        :raises KeyError: no such feature
        """
        bit = FEATURES[feature]
        row = self.row(bit.function, bit.index)
        return row is not None and bool(getattr(row, bit.register) >> bit.bit & 1)

    @property
    def maxphyaddr(self) -> int:
        """Bits of a physical address (cpuid_query_maxphyaddr); 36 where no leaf says."""
        highest = self.row(0x8000_0000)
        sizes = self.row(_ADDRESS_SIZES)
        if highest is None or highest.eax < _ADDRESS_SIZES or sizes is None:
            return _DEFAULT_MAXPHYADDR
        return sizes.eax & 0xFF

    def changed(self, *, without: Iterable[str] = (), maxphyaddr: int | None = None) -> Cpuid:
        """The same table with features taken away, or with another physical address width."""
        masks: dict[tuple[int, int, str], int] = {}
        for name in without:
            at = FEATURES[name]
            key = at.function, at.index, at.register
            masks[key] = masks.get(key, 0) | 1 << at.bit
        return Cpuid(tuple(self._changed(masks, maxphyaddr)))

    def _changed(self, masks: Mapping[tuple[int, int, str], int], maxphyaddr: int | None) -> Iterator[CpuidRow]:
        for row in self.rows:
            kept = {
                name: getattr(row, name) & ~masks.get((row.function, row.index, name), 0)
                for name in ("eax", "ebx", "ecx", "edx")
            }
            if row.function == _ADDRESS_SIZES and maxphyaddr is not None:
                kept["eax"] = kept["eax"] & ~0xFF | maxphyaddr
            yield replace(row, **kept)
