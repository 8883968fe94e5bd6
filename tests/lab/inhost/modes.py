# SPDX-License-Identifier: GPL-2.0-or-later
"""The vCPU modes of the L1 guest, and where each is to be caught; mode_table in guest/l1.S has the letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

L1, L2, SMM, HALTED = "L1", "L2", "SMM", "halted"


@dataclass(frozen=True)
class Mode:
    """Where a vCPU of this mode is at nearly all times.

    ``place`` is L1, L2, SMM, or halted if it was never started.  ``l2_cr3`` is the symbol of L2's page tables,
    ``cr3_step`` their size if each vCPU has its own.  One that ``wanders`` may be found in L1 just as well.
    """

    place: str
    l2_cr3: str = "l2_pml4"
    cr3_step: int = 0
    nested_paging: bool = False
    wanders: bool = False


MODES = {
    "2": Mode(L2),
    "n": Mode(L2, nested_paging=True),
    "1": Mode(L1),
    "-": Mode(HALTED),
    # L1 with GIF clear
    "0": Mode(L1),
    # 32-bit L2 with PAE, and without
    "p": Mode(L2, "pae_pdpts", 32, nested_paging=True),
    "P": Mode(L2, "pae_pdpts", 32),
    "w": Mode(L2, "legacy_directory", nested_paging=True),
    "W": Mode(L2, "legacy_directory"),
    # GIF clear in L2: L1's, or the virtual one, which V leaves set
    "c": Mode(L2),
    "v": Mode(L2, nested_paging=True),
    "V": Mode(L2, nested_paging=True),
    # RFLAGS.IF set in L2 alone, in L1 alone
    "i": Mode(L2),
    "I": Mode(L2, nested_paging=True),
    # DR7 of L1 and VMCB12 differ; L2 touches no debug register, or writes DR7 itself
    "d": Mode(L2, nested_paging=True),
    "D": Mode(L2, nested_paging=True),
    # L2 takes NMIs
    "N": Mode(L2, nested_paging=True),
    # an exception to inject at each VMRUN
    "r": Mode(L2, nested_paging=True, wanders=True),
    # an SMI hits L2, after each line
    "s": Mode(SMM),
}


def where(truth: dict[str, Any], index: int, letter: str, symbols: dict[str, int]) -> str:
    """Where QEMU says that a stopped vCPU is; raises Untimely if that is not where its mode is."""
    mode = MODES[letter]
    if mode.place == HALTED:
        return HALTED
    values = truth["registers"][str(index)]["values"]
    cr3, smm = int(values["CR3"], 16), values["SMM"] == "1"
    places = {symbols["l1_pml4"]: SMM if smm else L1, symbols[mode.l2_cr3] + index * mode.cr3_step: L2}
    place = places.get(cr3)
    if place != mode.place and not (mode.wanders and place == L1):
        raise Untimely(f"vCPU {index} of mode {letter} is in {place}: CR3 {cr3:#x}, SMM {int(smm)}")
    return place


class Untimely(Exception):
    """A vCPU was caught outside of its usual mode; another attempt may find it there."""
