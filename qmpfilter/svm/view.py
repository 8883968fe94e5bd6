# SPDX-License-Identifier: GPL-2.0-or-later
"""One vCPU's nested state and its section side by side, read once, for the rules and the conversions.

In era VMCB01 the page repeats the registers of the VMLOAD class, which the section has too: where they differ,
page and section are not of one instant.

Sources: Linux 5.13 to 7.3 arch/x86/kvm/svm/svm.c (svm_vcpu_enter_exit, svm_get_segment, svm_get_msr).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from operator import attrgetter
from typing import Final, NamedTuple

from qmpfilter.errors import BugError
from qmpfilter.layout import Codec, Fields
from qmpfilter.svm.legacy import FORMAT_SVM, Era, LegacyState
from qmpfilter.svm.provenance import SECTION, moves
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET, SEGMENTS, RegisterClass, registers
from qmpfilter.wire import cpu

__all__ = ["View"]

_CR0_PE = 1 << 0
_CR0_PG = 1 << 31
_EFER_LME = 1 << 8
_LOW_32 = 0xFFFF_FFFF

_CONTROL, _SAVE, _BLOCK = Codec(CONTROL), Codec(SAVE), Codec(cpu.BLOCK)


class View:
    """What rules read.

    :param nested: the vCPU's nested state, None when the section has no ``cpu/nested_state``
    :param block: the section's fixed field block, 1817 bytes
    :param subsections: full names of the section's subsections
    :ivar cpu: the block's fields: L2's registers while L2 is active
    :ivar control: VMCB12's control area, where there is a page
    :ivar l1: L1's save area, where there is a page
    :ivar era: where the kernel took L1's save area from
    :ivar broken: codes of the rules of :mod:`qmpfilter.svm.findings` that are broken, in their order; None until they
        were walked
    :ivar live_differing: in era VMCB01, the registers of the VMLOAD class in which page and section differ, a
        segment as one, each with a sentence that has both values
    :raises BugError: `block` has the wrong length
    """

    __slots__ = ("block", "broken", "control", "cpu", "era", "l1", "live_differing", "nested", "subsections")

    control: Fields
    l1: Fields

    def __init__(self, nested: LegacyState | None, block: bytes | memoryview, subsections: Collection[str]) -> None:
        if len(block) != cpu.BLOCK.size:
            raise BugError(f"cpu: a block of {cpu.BLOCK.size} bytes expected, {len(block)} given")
        self.nested: Final = nested
        self.block: Final = block
        self.subsections: Final = subsections
        self.cpu: Final = _BLOCK.read(block)
        self.era: Era = Era.UNKNOWN
        self.live_differing: dict[str, str] = {}
        self.broken: tuple[str, ...] | None = None
        if nested is None or nested.page is None:
            return
        self.control = _CONTROL.read(nested.page)
        self.l1 = _SAVE.read(nested.page, SAVE_OFFSET)
        self.era = nested.era
        if self.era is Era.VMCB01:
            for register, text in _differences(self.l1, self.cpu):
                so_far = self.live_differing.get(register)
                self.live_differing[register] = text if so_far is None else f"{so_far}; {text}"

    @property
    def state(self) -> LegacyState:
        """The nested state.

        :raises BugError: the section has none
        """
        if self.nested is None:
            raise BugError("a rule about nested state was asked of a vCPU without any")
        return self.nested

    @property
    def hf_guest(self) -> bool:
        """The section says that L2 is active."""
        return bool(self.cpu.hflags & cpu.HF_GUEST)

    @property
    def hf2_gif(self) -> bool:
        """The section says that L1's GIF is set."""
        return bool(self.cpu.hflags2 & cpu.HF2_GIF)

    @property
    def svm_guest(self) -> bool:
        """The nested state is SVM's and L2 is active."""
        return self.nested is not None and self.nested.format == FORMAT_SVM and self.nested.guest_mode

    @property
    def long_mode_l1(self) -> bool:
        """L1 has long mode and paging on, so that KVM checks what long mode demands."""
        return bool(self.l1.efer & _EFER_LME and self.l1.cr0 & _CR0_PG)

    @property
    def tcg_subsections(self) -> str:
        """Which subsections of TCG's SVM emulation there are, in words."""
        present = [name for name in ("cpu/svn_npt", "cpu/svm_guest") if name in self.subsections]
        return " and ".join(present) or "nothing else about L2"

    @property
    def live_differences(self) -> str:
        """All of :attr:`live_differing`, in words."""
        return "; ".join(self.live_differing.values())


_VMLOAD = registers(RegisterClass.VMLOAD)
_LIVE_SEGMENTS: Final = tuple(name for name in _VMLOAD if name in SEGMENTS)
# With the bits that both keep: SVM only has the low halves of SYSENTER_* (KVM holds the rest elsewhere).
_LIVE_MSRS: Final = tuple(
    (row.register, row.section, _LOW_32 if row.register.startswith("sysenter") else ~0)
    for row in SECTION
    if row.register in _VMLOAD and row.register not in SEGMENTS
)


class _LiveCopy(NamedTuple):
    """A field of the VMLOAD class in both sources, and the bits in which they must agree: in general, and
    while L2 is in real mode."""

    register: str
    text: str
    in_page: str
    in_section: str
    kept: int
    in_real_mode: int
    read: Callable[[int], int]


def _live_copies() -> Iterator[_LiveCopy]:
    for row in SECTION:
        if row.register in _LIVE_SEGMENTS:
            for move in moves(row):
                text = move.save.replace("_", " ")
                yield _LiveCopy(
                    row.register, text, move.save, move.block, move.compared, move.in_real_mode, move.read
                )
    for in_save, in_block, kept in _LIVE_MSRS:
        yield _LiveCopy(in_save, in_save, in_save, in_block, kept, kept, int)


_LIVE: Final = tuple(_live_copies())
_LIVE_IN_PAGE: Final = attrgetter(*(copy.in_page for copy in _LIVE))
_LIVE_IN_SECTION: Final = attrgetter(*(copy.in_section for copy in _LIVE))
_LIVE_READ: Final = tuple((index, copy.read) for index, copy in enumerate(_LIVE) if copy.read is not int)


def _differences(l1: Fields, section: Fields) -> Iterator[tuple[str, str]]:
    """Register and sentence of each difference."""
    in_pages, in_sections = _LIVE_IN_PAGE(l1), list(_LIVE_IN_SECTION(section))
    for index, read in _LIVE_READ:
        in_sections[index] = read(in_sections[index])
    # So it mostly is, and the guest stands still.
    if in_pages == tuple(in_sections):
        return
    real_mode = not section.cr0 & _CR0_PE
    for copy, in_page, in_section in zip(_LIVE, in_pages, in_sections, strict=True):
        if (in_page ^ in_section) & (copy.in_real_mode if real_mode else copy.kept):
            yield copy.register, f"{copy.text} is {in_page:#x} in the page, {in_section:#x} in the registers"
