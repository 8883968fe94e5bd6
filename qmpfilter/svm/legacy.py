# SPDX-License-Identifier: GPL-2.0-or-later
"""Legacy nested state (format 1): what KVM_GET_NESTED_STATE gives and QEMU sends.

The page of a vCPU in L2 is stitched from two VMCBs: VMCB12's control area at page+0x000, then *L1's*
save area at page+0x400. L2's own registers are not in it; they are the vCPU's ordinary registers.

Sources: Linux 7.3 arch/x86/include/uapi/asm/kvm.h (struct kvm_nested_state, KVM_STATE_NESTED_*) and
arch/x86/kvm/svm/nested.c (svm_get_nested_state, svm_set_nested_state); QEMU 10.2.2
target/i386/machine.c (vmstate_nested_state, vmstate_svm_nested_state).
"""

from __future__ import annotations

from enum import Enum, IntFlag
from typing import Final

from qmpfilter.errors import BugError
from qmpfilter.svm.vmcb import CONTROL_SIZE, PAGE_SIZE, SAVE, SAVE_OFFSET, SAVE_SIZE, named_bits, save_fields
from qmpfilter.value_class import value_class
from qmpfilter.wire import cpu

__all__ = [
    "FORMAT_SVM",
    "FORMAT_VMX",
    "SIZE_L1",
    "SIZE_L2",
    "SIZE_SUBSECTION_HEADER",
    "SIZE_SUBSECTION_SVM",
    "SVM_FLAGS",
    "Era",
    "LegacyState",
    "StateFlags",
    "flag_names",
]


class StateFlags(IntFlag):
    """kvm_nested_state.flags (KVM_STATE_NESTED_*); EVMCS and MTF_PENDING are VMX only."""

    GUEST_MODE = 0x0001
    RUN_PENDING = 0x0002
    EVMCS = 0x0004
    MTF_PENDING = 0x0008
    GIF_SET = 0x0100


def flag_names(flags: int) -> list[str]:
    """Names of the set flags in ascending order; one without a name is given as ``bit 15``."""
    return named_bits(StateFlags, flags)


SVM_FLAGS: Final = int(StateFlags.GUEST_MODE | StateFlags.RUN_PENDING | StateFlags.GIF_SET)
"""The flags that KVM accepts for SVM."""

# As plain integers: an operation on IntFlag costs a microsecond.
_GUEST_MODE, _RUN_PENDING, _GIF_SET = (
    int(flag) for flag in (StateFlags.GUEST_MODE, StateFlags.RUN_PENDING, StateFlags.GIF_SET)
)

# KVM_STATE_NESTED_FORMAT_*
FORMAT_VMX: Final = 0
FORMAT_SVM: Final = 1

# kvm_nested_state.size, which counts the 128-byte header: while L1 runs, and while L2 runs.
SIZE_L1: Final = 0x80
SIZE_L2: Final = SIZE_L1 + PAGE_SIZE

# Bytes of the two subsections' own fields.
SIZE_SUBSECTION_HEADER: Final = cpu.NESTED_STATE.layout.size
SIZE_SUBSECTION_SVM: Final = cpu.NESTED_STATE_SVM.layout.size

_HEADER = cpu.NESTED_STATE.layout
_SVM = cpu.NESTED_STATE_SVM.layout

# A vmcb01 page cannot have all of these zero; the separate hsave page of 5.8 to 5.11 never fills any.
_ZERO_IN_HSAVE = tuple(
    field for register in ("tr", "fs", "gs", "ldtr", "cpl", "dr6", "g_pat") for field in save_fields(register)
)


class Era(Enum):
    """Where the kernel took L1's save area from, which decides what its other fields mean."""

    HSAVE = "hsave"
    """Up to Linux 5.11: a page of its own that holds only what VMRUN saves, everything else zero."""
    VMCB01 = "vmcb01"
    """From 5.13: the live vmcb01, whose VMLOAD class registers are the current ones, as L2 sees them."""
    UNKNOWN = "unknown"
    """No page, or one that neither rule fits."""


@value_class
class LegacyState:
    """One vCPU's nested state as it travels; nothing is checked here, see :mod:`qmpfilter.svm.findings`.

    :param flags: KVM_STATE_NESTED_* bits
    :param format: KVM_STATE_NESTED_FORMAT_*
    :param size: bytes of struct kvm_nested_state that are valid, by its own account
    :param vmcb_pa: L1 GPA of VMCB12; 0 when the svm child is absent
    :param page: the 4096 bytes of vmcb12[], None when the svm child is absent
    """

    flags: int
    format: int
    size: int
    vmcb_pa: int
    page: bytes | None

    @classmethod
    def from_subsections(
        cls, header: bytes | bytearray | memoryview, svm_child: bytes | bytearray | memoryview | None
    ) -> LegacyState:
        """Decode the payloads of two subsections; every value of their bytes is accepted.

        :param header: fields of ``cpu/nested_state``: big-endian u16 flags, u16 format, u32 size
        :param svm_child: fields of ``cpu/kvm_nested_state/svm``: big-endian u64 vmcb_pa, then the page
        :raises BugError: one of them has the wrong length
        """
        if len(header) != SIZE_SUBSECTION_HEADER:
            raise BugError(f"{_HEADER.name}: {SIZE_SUBSECTION_HEADER} bytes expected, {len(header)} given")
        if svm_child is not None and len(svm_child) != SIZE_SUBSECTION_SVM:
            raise BugError(f"{_SVM.name}: {SIZE_SUBSECTION_SVM} bytes expected, {len(svm_child)} given")
        return cls(
            flags=_HEADER.get(header, "flags"),
            format=_HEADER.get(header, "format"),
            size=_HEADER.get(header, "size"),
            vmcb_pa=0 if svm_child is None else _SVM.get(svm_child, "vmcb_pa"),
            page=None if svm_child is None else bytes(svm_child[_SVM.span("vmcb12")]),
        )

    @property
    def guest_mode(self) -> bool:
        """L2 is active."""
        return bool(self.flags & _GUEST_MODE)

    @property
    def run_pending(self) -> bool:
        """VMRUN was emulated, but L2 has not executed an instruction since."""
        return bool(self.flags & _RUN_PENDING)

    @property
    def gif(self) -> bool:
        """L1's global interrupt flag; L2's virtual one is IntCtl.V_GIF."""
        return bool(self.flags & _GIF_SET)

    @property
    def control(self) -> memoryview:
        """VMCB12's control area, 0x400 bytes.

        :raises BugError: there is no page
        """
        return self._area(0, CONTROL_SIZE)

    @property
    def save(self) -> memoryview:
        """L1's save area, 0x300 bytes.

        :raises BugError: there is no page
        """
        return self._area(SAVE_OFFSET, SAVE_SIZE)

    @property
    def era(self) -> Era:
        """Told from the page alone. A kernel up to 5.11 whose vCPU was itself restored from a newer
        one's state keeps that state's bytes and so looks like VMCB01, with stale VMLOAD registers."""
        if self.page is None:
            return Era.UNKNOWN
        if SAVE.get(self.page, "tr_attrib", SAVE_OFFSET):
            return Era.VMCB01
        if not any(SAVE.get(self.page, name, SAVE_OFFSET) for name in _ZERO_IN_HSAVE):
            return Era.HSAVE
        return Era.UNKNOWN

    def _area(self, start: int, size: int) -> memoryview:
        if self.page is None:
            raise BugError("nested state without a VMCB page was asked for one of its areas")
        return memoryview(self.page)[start : start + size]
