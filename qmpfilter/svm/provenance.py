# SPDX-License-Identifier: GPL-2.0-or-later
"""Where each register of VMCB12's save area stands in a legacy stream, and how exact it is there.

Legacy state has no save area of L2: its registers are the vCPU's ordinary ones, in the `cpu` section.
:data:`SECTION` and :data:`SUBSECTIONS` say which is which, once, for both directions. What one row cannot
say (DR7, PAT, LBR) is in :mod:`qmpfilter.svm.doubtful`.

Sources: Linux 7.3 arch/x86/kvm/svm/svm.c (svm_get_segment, svm_set_segment, svm_get_msr) and x86.c
(KVM_GET_SREGS, KVM_GET_DEBUGREGS); QEMU 10.2.2 target/i386/kvm/kvm.c (get_seg, kvm_get_sregs2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, NamedTuple

from qmpfilter.errors import BugError
from qmpfilter.layout import Layout
from qmpfilter.svm.segment import ATTRIB_DPL, ATTRIB_MASK, NORMALISED, attrib_to_flags, flags_to_attrib
from qmpfilter.value_class import value_class
from qmpfilter.wire import cpu

__all__ = ["SECTION", "SUBSECTIONS", "Confidence", "FieldFinding", "HeldApart", "Move", "Row", "moves"]

_DR7_FIXED = 1 << 10
_RFLAGS_FIXED = 1 << 1
_LOW_32 = 0xFFFF_FFFF


class Confidence(Enum):
    """How a field of the new state relates to what the source's hardware held."""

    EXACT = "exact"
    """The same bits."""
    CANON = "canonical"
    """The same after what KVM itself normalises."""
    RECOMPUTED = "recomputed"
    """Not carried; what it must be, given the rest."""
    GUESSED = "guessed"
    """Carried by something that need not be it."""
    LOST = "lost"
    """Not carried, and nothing tells what it was."""


@value_class
class FieldFinding:
    """How exact one field of a conversion's result is.

    :param field: in the new state: ``vmcb12_save.dr7``, ``l1_visible.cr0``, ``cpu.dr7`` ...; a segment
        register is one field
    :param confidence: how exact
    :param why: in words
    """

    field: str
    confidence: Confidence
    why: str


class Move(NamedTuple):
    """One field in both places: `read` makes the save area's value of the section's, `write` the reverse.

    Values that differ only outside of `compared` are the same register; where it is 0, the section is never
    written. `in_real_mode` takes its place while L2 has CR0.PE clear: QEMU may have cleared the DPLs of the
    section then (cpu_pre_save).
    """

    save: str
    block: str
    read: Callable[[int], int]
    write: Callable[[int], int]
    compared: int
    in_real_mode: int


class _Kind(Enum):
    """How a register is laid out in both places."""

    PLAIN = "one integer"
    SEGMENT = "selector, base, limit, attributes"
    TABLE = "base and limit; selector and attributes mean nothing and are 0"
    CPL = "the DPL of SS, in which KVM reports the CPL"


class Row(NamedTuple):
    """One register: its name in the save area and in the section's field block, how it is laid out, and how
    exact the section's copy is.

    `live` is set where the page of era VMCB01 has a copy too, and that the raw one; `fixed` bits are always
    set in the save area, `width` bits are what the section can hold. A row that is not `written` only repeats
    another register: the section follows that one.
    """

    register: str
    section: str
    confidence: Confidence
    why: str
    kind: _Kind = _Kind.PLAIN
    live: bool = False
    fixed: int = 0
    width: int = ~0
    written: bool = True


_EXACT, _CANON = Confidence.EXACT, Confidence.CANON
_REGISTER = "the vCPU's register, which is L2's"
_SEGMENT = "the vCPU's register; KVM recomputes G, and the accessed or busy bit"

_DOUBTFUL = "judged case by case: qmpfilter.svm.doubtful"

# fmt: off
SECTION: Final = (
    Row("es", "es", _CANON, _SEGMENT, _Kind.SEGMENT),
    Row("cs", "cs", _CANON, _SEGMENT, _Kind.SEGMENT),
    Row("ss", "ss", _CANON, _SEGMENT, _Kind.SEGMENT),
    Row("ds", "ds", _CANON, _SEGMENT, _Kind.SEGMENT),
    Row("fs", "fs", _CANON, _SEGMENT, _Kind.SEGMENT, live=True),
    Row("gs", "gs", _CANON, _SEGMENT, _Kind.SEGMENT, live=True),
    Row("gdtr", "gdt", _EXACT, _REGISTER, _Kind.TABLE),
    Row("ldtr", "ldt", _CANON, _SEGMENT, _Kind.SEGMENT, live=True),
    Row("idtr", "idt", _EXACT, _REGISTER, _Kind.TABLE),
    Row("tr", "tr", _CANON, _SEGMENT, _Kind.SEGMENT, live=True),
    Row("cpl", "ss", _EXACT, "KVM reports the CPL as the DPL of SS", _Kind.CPL, written=False),
    Row("efer", "efer", _EXACT, _REGISTER),
    Row("cr4", "cr4", _EXACT, _REGISTER),
    Row("cr3", "cr3", _EXACT, _REGISTER),
    Row("cr0", "cr0", _EXACT, _REGISTER),
    Row("dr7", "dr7", Confidence.GUESSED, _DOUBTFUL, fixed=_DR7_FIXED),
    Row("dr6", "dr6", _EXACT, _REGISTER),
    Row("rflags", "rflags", _EXACT, _REGISTER, fixed=_RFLAGS_FIXED),
    Row("rip", "rip", _EXACT, _REGISTER),
    Row("rsp", "rsp", _EXACT, _REGISTER),
    Row("rax", "rax", _EXACT, _REGISTER),
    Row("star", "star", _EXACT, _REGISTER),
    Row("lstar", "lstar", _EXACT, _REGISTER),
    Row("cstar", "cstar", _EXACT, _REGISTER),
    Row("sfmask", "fmask", _EXACT, _REGISTER),
    Row("kernel_gs_base", "kernelgsbase", _EXACT, _REGISTER),
    Row("sysenter_cs", "sysenter_cs", _EXACT, _REGISTER, width=_LOW_32),
    Row("sysenter_esp", "sysenter_esp", _EXACT, _REGISTER),
    Row("sysenter_eip", "sysenter_eip", _EXACT, _REGISTER),
    Row("cr2", "cr2", _EXACT, _REGISTER),
    Row("g_pat", "pat", Confidence.GUESSED, _DOUBTFUL, written=False),
)
# fmt: on


class HeldApart(NamedTuple):
    """A register that travels in a subsection of its own, and what its absence means."""

    register: str
    subsection: str
    layout: Layout
    name: str
    absent: str

    def get(self, payload: bytes) -> int:
        """Its value in that subsection.

        :raises BugError: the payload has another size
        """
        if len(payload) != self.layout.size:
            raise BugError(f"{self.subsection}: {self.layout.size} bytes expected, {len(payload)} given")
        return self.layout.get(payload, self.name)


_CET = cpu.SUBSECTIONS["cpu/cet"]
_SHSTK = _CET.children["cpu/cet_shstk"].layout
_SPEC_CTRL = cpu.SUBSECTIONS["cpu/spec_ctrl"].layout
_NO_CET = "no subsection carries it, and CR4.CET is clear"
_NO_SPEC_CTRL = "no subsection carries it: QEMU sends it unless it is 0"

SUBSECTIONS: Final = (
    HeldApart("s_cet", "cpu/cet", _CET.layout, "s_cet", _NO_CET),
    HeldApart("ssp", "cpu/cet_shstk", _SHSTK, "guest_ssp", _NO_CET),
    HeldApart("isst_addr", "cpu/cet_shstk", _SHSTK, "int_ssp_table", _NO_CET),
    HeldApart("spec_ctrl", "cpu/spec_ctrl", _SPEC_CTRL, "spec_ctrl", _NO_SPEC_CTRL),
)


def moves(row: Row) -> Iterator[Move]:
    """The fields of a row."""
    if row.kind is _Kind.SEGMENT:
        compared = ATTRIB_MASK & ~NORMALISED[row.register]
        yield _part(row, "selector", lambda value: value & 0xFFFF)
        yield Move(
            f"{row.register}_attrib",
            f"{row.section}_flags",
            flags_to_attrib,
            attrib_to_flags,
            compared,
            compared & ~ATTRIB_DPL,
        )
    if row.kind in (_Kind.SEGMENT, _Kind.TABLE):
        yield _part(row, "base", int)
        yield _part(row, "limit", int)
    elif row.kind is _Kind.CPL:
        yield Move(row.register, f"{row.section}_flags", lambda flags: flags_to_attrib(flags) >> 5 & 3, int, 0, 0)
    else:
        fixed, width = row.fixed, row.width
        compared = ~fixed if row.written else 0
        read = (lambda value: value | fixed) if fixed else int
        yield Move(row.register, row.section, read, lambda value: value & width, compared, compared)


def _part(row: Row, part: str, read: Callable[[int], int]) -> Move:
    return Move(f"{row.register}_{part}", f"{row.section}_{part}", read, int, ~0, ~0)
