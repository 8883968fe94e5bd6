# SPDX-License-Identifier: GPL-2.0-or-later
"""What one case is: a kind of L2, its registers, and where the guest is stopped."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Case", "Mode"]


class Mode(enum.Enum):
    """What L2 runs in."""

    LONG = "64-bit"
    USER = "64-bit at CPL 3"
    COMPATIBILITY = "32-bit in long mode"
    PAE = "32-bit with PAE"
    LEGACY = "32-bit without PAE"
    PROTECTED_16 = "16-bit with PAE"
    UNPAGED = "32-bit without paging"
    V8086 = "virtual 8086"
    REAL = "real mode"

    @property
    def long(self) -> bool:
        """EFER.LMA is set."""
        return self in (Mode.LONG, Mode.USER, Mode.COMPATIBILITY)

    @property
    def paged(self) -> bool:
        """CR0.PG is set."""
        return self not in (Mode.UNPAGED, Mode.REAL)

    @property
    def pae(self) -> bool:
        """CR4.PAE is set."""
        return self.long or self in (Mode.PAE, Mode.PROTECTED_16)

    @property
    def cpl(self) -> int:
        """The privilege level."""
        return 3 if self in (Mode.USER, Mode.V8086) else 0

    @property
    def paragraphs(self) -> bool:
        """A segment's base is its selector shifted by 4."""
        return self in (Mode.V8086, Mode.REAL)


@dataclass(frozen=True)
class Case:
    """One guest and one way to stop it.

    :param name: for the report
    :param mode: what L2 runs in
    :param nested_paging: VMCB12 has nested paging on
    :param seed: of the values in the registers of L1 and L2
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

    @property
    def handled(self) -> bool:
        """Something is delivered to L2's handler after the stop, once."""
        return self.inject or bool(self.events)
