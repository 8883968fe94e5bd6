# SPDX-License-Identifier: GPL-2.0-or-later
"""svm2, version 2 of the SVM nested state: the model, whatever carries it.

It holds three whole things where legacy state is stitched from halves: what #VMEXIT must load (L1's save
area), L1's control registers as L1 would read them, and VMCB12 with both its areas. CPU-visible values
never travel: they belong to a host.

Source: the proposal on the KVM list of August 2021 (Levitsky, Bonzini), and this project's format.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from qmpfilter.errors import BugError
from qmpfilter.svm.legacy import StateFlags
from qmpfilter.svm.vmcb import CONTROL_SIZE, PAGE_SIZE, SAVE_SIZE
from qmpfilter.value_class import value_class

__all__ = [
    "FLAG_BITS",
    "MAJOR",
    "MINOR",
    "VALIDITY_BITS",
    "L1Visible",
    "Producer",
    "Svm2Flags",
    "Svm2State",
    "Validity",
]

MAJOR: Final = 2
MINOR: Final = 0


# As plain integers: an operation on IntFlag costs a microsecond.
_GUEST_MODE, _RUN_PENDING, _GIF_SET = (
    int(flag) for flag in (StateFlags.GUEST_MODE, StateFlags.RUN_PENDING, StateFlags.GIF_SET)
)


class Svm2Flags(IntFlag):
    """What a consumer must know of the whole record."""

    CONVERTED = 1 << 0
    """Built from processor registers by a converter, not by the kernel that ran L2."""
    AUTHORITATIVE = 1 << 1
    """A consumer loads L2 from vmcb12_save, not from the registers that it already holds."""


class Validity(IntFlag):
    """Items of vmcb12_save that are exact when set, and guessed, recomputed or absent when clear.

    Everything else in it is exact by construction, or the conversion is refused.
    """

    DR7 = 1 << 0
    G_PAT = 1 << 1
    LBR = 1 << 2
    CET = 1 << 3
    NEXT_RIP = 1 << 4
    INT_STATE = 1 << 5
    RAW_ATTRIBUTES = 1 << 6
    SPEC_CTRL = 1 << 7


# All bits that this minor defines.
VALIDITY_BITS: Final = int(~Validity(0))
FLAG_BITS: Final = int(~Svm2Flags(0))


class Producer(IntEnum):
    """Who built a record."""

    QMPFILTER = 1
    LINUX = 2


@value_class
class L1Visible:
    """L1's registers as L1 would read them."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    pat: int


@value_class
class Svm2State:
    """The nested state of one vCPU that is in L2.

    :param vmcb_pa: L1 GPA of VMCB12
    :param l1_save: L1's save area, 0x300 bytes in the VMCB's layout; only the VMRUN class means anything, and
        the rest is kept as the kernel gave it, so that legacy state comes back byte for byte
    :param vmcb12_control: VMCB12's control area, 0x400 bytes
    :param vmcb12_save: VMCB12's save area, that is L2's registers, 0x300 bytes
    :param producer: a :class:`Producer`, or a number that is not known here
    :raises BugError: an area has another size, or vmcb_pa is not the address of a page
    """

    run_pending: bool
    gif: bool
    vmcb_pa: int
    l1_visible: L1Visible
    l1_save: bytes
    vmcb12_control: bytes
    vmcb12_save: bytes
    validity: Validity
    flags: Svm2Flags
    producer: int
    producer_version: int

    def __post_init__(self) -> None:
        sizes = len(self.l1_save), len(self.vmcb12_control), len(self.vmcb12_save)
        if sizes != (SAVE_SIZE, CONTROL_SIZE, SAVE_SIZE):
            raise BugError(f"svm2: areas of {sizes} bytes, not {(SAVE_SIZE, CONTROL_SIZE, SAVE_SIZE)}")
        if self.vmcb_pa % PAGE_SIZE:
            raise BugError(f"svm2: vmcb_pa {self.vmcb_pa:#x} is not the address of a page")

    @property
    def state_flags(self) -> int:
        """kvm_nested_state.flags: GUEST_MODE, and RUN_PENDING and GIF_SET as they are."""
        return _GUEST_MODE | (_RUN_PENDING if self.run_pending else 0) | (_GIF_SET if self.gif else 0)
