# SPDX-License-Identifier: GPL-2.0-or-later
"""svm2 to legacy nested state: for a destination whose kernel and QEMU know no other.

VMCB12's control area and L1's save area make the page; L2's save area has no place in it, so the vCPU's
`cpu` section is made equal to it. What legacy state cannot hold is told, and what would make the destination
refuse or run another L2 is refused.

Sources: this project's format, section 6; Linux 7.3 arch/x86/kvm/svm/nested.c (svm_set_nested_state) and
x86.c (kvm_is_valid_sregs); QEMU 10.2.2 target/i386/kvm/kvm.c (kvm_put_sregs2, kvm_put_nested_state).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter, itemgetter
from typing import Final, NamedTuple

from qmpfilter.errors import BugError
from qmpfilter.layout import Codec, Fields
from qmpfilter.svm.doubtful import LBR
from qmpfilter.svm.findings import Finding, Severity, judge
from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L2, LegacyState
from qmpfilter.svm.provenance import SECTION, SUBSECTIONS, Confidence, FieldFinding, moves
from qmpfilter.svm.refusal import raise_refusals
from qmpfilter.svm.segment import ATTRIB_DPL, ATTRIB_MASK, NORMALISED
from qmpfilter.svm.svm2 import Svm2State, Validity
from qmpfilter.svm.view import View
from qmpfilter.svm.vmcb import CONTROL, CONTROL_SIZE, PAGE_SIZE, SAVE, SAVE_OFFSET, MiscCtl
from qmpfilter.value_class import value_class
from qmpfilter.wire import cpu

__all__ = ["Downgrade", "to_legacy"]

_PAGE_MASK: Final = ~(PAGE_SIZE - 1)


@value_class
class Downgrade:
    """What became of one vCPU's svm2 state.

    :param legacy: nested state for the destination
    :param block: the field block of its `cpu` section, equal to L2's save area
    :param subsections: payloads that changed, by full name; the others stay
    :param fields: what was changed in the section, what was lost, and in the page what was not as KVM gives it
    :param warnings: what is legal but lost or doubtful in the result
    """

    legacy: LegacyState
    block: bytes
    subsections: Mapping[str, bytes]
    fields: tuple[FieldFinding, ...]
    warnings: tuple[Finding, ...]


def to_legacy(state: Svm2State, block: bytes, subsections: Mapping[str, bytes]) -> Downgrade:
    """Convert one vCPU's svm2 state. From what :func:`qmpfilter.svm.convert.to_svm2` made of legacy state, the
    same page and the same section come back.

    :param block: the fixed field block of its `cpu` section, 1817 bytes
    :param subsections: payloads of the section's subsections, and of their children, by full name
    :raises RefusedError: the state is one that legacy state cannot hold, or that kernels reject
    :raises BugError: an argument has the wrong size
    """
    if len(block) != cpu.BLOCK.size:
        raise BugError(f"cpu: a block of {cpu.BLOCK.size} bytes expected, {len(block)} given")
    fields: list[FieldFinding] = []
    legacy = LegacyState(state.state_flags, FORMAT_SVM, SIZE_L2, state.vmcb_pa, _page(state, fields))
    save = _SAVE.read(state.vmcb12_save)
    new_block = _block(state, save, block, fields)
    changed = _subsections(state, subsections, fields)
    fields += _lost(state)

    findings = judge(View(legacy, new_block, subsections))
    l2 = _L2(state, subsections, save, cpu.BLOCK.get(new_block, "pat"))
    findings += [rule.finding(l2) for rule in _RULES if rule.broken(l2)]
    raise_refusals(findings)
    return Downgrade(legacy, new_block, changed, tuple(fields), tuple(findings))


# --- the page ----------------------------------------------------------------------------------

# What svm_get_nested_state never gives, and a destination need not be asked to bear.
_NEVER_GIVEN: Final = tuple((name, CONTROL.span(name), bytes(CONTROL.fields[name].size)) for name in (
    "avic_vapic_bar", "ghcb_gpa", "clean", "insn_len", "insn_bytes", "avic_backing_page", "avic_logical_id",
    "avic_physical_id", "vmsa_pa", "bus_lock_counter", "allowed_sev_features", "guest_sev_features",
    "hv_enlightenments_control", "hv_vp_id", "hv_vm_id", "partition_assist_page", "hv_reserved",
))  # fmt: skip
_ALL_NEVER_GIVEN: Final = itemgetter(*(span for _, span, _ in _NEVER_GIVEN))
_NONE_GIVEN: Final = tuple(zero for _, _, zero in _NEVER_GIVEN)
_MAPS: Final = ("iopm_base_pa", "msrpm_base_pa")
_RFLAGS_FIXED: Final = 1 << 1


def _page(state: Svm2State, fields: list[FieldFinding]) -> bytes:
    page = bytearray(PAGE_SIZE)
    page[:CONTROL_SIZE] = state.vmcb12_control
    page[SAVE_OFFSET : SAVE_OFFSET + len(state.l1_save)] = state.l1_save
    if _ALL_NEVER_GIVEN(page) != _NONE_GIVEN:
        fields += _cleared(page)
    for name in _MAPS:
        CONTROL.put(page, name, CONTROL.get(page, name) & _PAGE_MASK)
    visible = state.l1_visible
    for name, value in (
        ("cr0", visible.cr0),
        ("cr3", visible.cr3),
        ("cr4", visible.cr4),
        ("efer", visible.efer),
        ("cpl", 0),
        ("rflags", SAVE.get(page, "rflags", SAVE_OFFSET) | _RFLAGS_FIXED),
    ):
        SAVE.put(page, name, value, SAVE_OFFSET)
    return bytes(page)


def _cleared(page: bytearray) -> Iterator[FieldFinding]:
    for name, span, zero in _NEVER_GIVEN:
        if page[span] != zero:
            page[span] = zero
            yield FieldFinding(f"control.{name}", Confidence.LOST, "0: KVM never gives it in nested state")


# --- the section -------------------------------------------------------------------------------

_SAVE: Final = Codec(SAVE)
_BLOCK: Final = Codec(cpu.BLOCK)
_MOVES: Final = tuple(move for row in SECTION for move in moves(row) if move.compared)
_MOVED_FROM: Final = attrgetter(*(move.save for move in _MOVES))
_MOVED_TO: Final = attrgetter(*(move.block for move in _MOVES))
_READ: Final = tuple((index, move.read) for index, move in enumerate(_MOVES) if move.read is not int)
# QEMU keeps DR6 and DR7 twice (kvm_get_debugregs), and loads the second.
_MIRRORS: Final[Mapping[str, str]] = {"dr6": "dr4", "dr7": "dr5"}
_CR0_PE: Final = 1 << 0


def _block(state: Svm2State, l2: Fields, block: bytes, fields: list[FieldFinding]) -> bytes:
    """The block with what differs from the state.

    What only KVM's normalising makes differ stays, and so does DR7 where the state's is a guess: there the
    destination gets what it would get without a conversion.
    """
    section = _BLOCK.read(block)
    real_mode = not l2.cr0 & _CR0_PE
    before = list(_MOVED_TO(section))
    for index, read in _READ:
        before[index] = read(before[index])
    wanted = {
        move.block: move.write(new)
        for move, new, old in zip(_MOVES, _MOVED_FROM(l2), before, strict=True)
        # Most are equal, and the guest stands still.
        if new != old and (new ^ old) & (move.in_real_mode if real_mode else move.compared)
    }
    if not state.validity & Validity.DR7:
        wanted.pop("dr7", None)
    wanted |= {mirror: wanted[name] for name, mirror in _MIRRORS.items() if name in wanted}
    wanted["pat"] = state.l1_visible.pat
    wanted["hflags"] = section.hflags | cpu.HF_GUEST
    wanted["hflags2"] = section.hflags2 & ~cpu.HF2_GIF | (cpu.HF2_GIF if state.gif else 0)
    built = bytearray(block)
    for name, value in wanted.items():
        old = getattr(section, name)
        if value != old:
            cpu.BLOCK.put(built, name, value)
            why = f"{value:#x} by svm2; the section had {old:#x}"
            fields.append(FieldFinding(f"cpu.{name}", Confidence.EXACT, why))
    return bytes(built)


_ITEMS: Final[Mapping[str, Validity]] = {"spec_ctrl": Validity.SPEC_CTRL}


def _subsections(state: Svm2State, subsections: Mapping[str, bytes], fields: list[FieldFinding]) -> dict[str, bytes]:
    """The payloads that change. Only what is valid replaces what a subsection says."""
    changed: dict[str, bytes] = {}
    for row in SUBSECTIONS:
        value = SAVE.get(state.vmcb12_save, row.register)
        payload = changed.get(row.subsection) or subsections.get(row.subsection)
        if payload is None:
            if value:
                why = f"{value:#x} in svm2; the section has no {row.subsection} to hold it"
                fields.append(FieldFinding(f"vmcb12_save.{row.register}", Confidence.LOST, why))
            continue
        old = row.get(payload)
        if old != value and state.validity & _ITEMS.get(row.register, Validity.CET):
            built = bytearray(payload)
            row.layout.put(built, row.name, value)
            changed[row.subsection] = bytes(built)
            why = f"{value:#x} by svm2; the section had {old:#x}"
            fields.append(FieldFinding(f"{row.subsection}.{row.name}", Confidence.EXACT, why))
    return changed


def _lost(state: Svm2State) -> Iterator[FieldFinding]:
    """Registers with a value for which neither page nor section has a place."""
    for name in (*LBR, "vmpl"):
        if value := SAVE.get(state.vmcb12_save, name):
            yield FieldFinding(f"vmcb12_save.{name}", Confidence.LOST, f"{value:#x} has no place in legacy state")
    if _SAVE.pack(*_SAVE.unpack(state.vmcb12_save)) != state.vmcb12_save:
        yield FieldFinding("vmcb12_save", Confidence.LOST, "bytes of no known register have no place in legacy state")


# --- what is refused ---------------------------------------------------------------------------


class _L2(NamedTuple):
    """What the rules below read: L2's save area as svm2 has it, and the PAT of the new section."""

    state: Svm2State
    subsections: Mapping[str, bytes]
    save: Fields
    pat: int

    @property
    def nested_paging(self) -> bool:
        """VMCB12 has nested paging on."""
        return bool(CONTROL.get(self.state.vmcb12_control, "misc_ctl") & _NP)

    @property
    def ss_dpl(self) -> int:
        """The DPL of SS, which is the CPL in legacy state."""
        return (self.save.ss_attrib & ATTRIB_DPL) >> 5

    @property
    def long_mode(self) -> bool:
        """Long mode and paging are on, in the sense in which KVM checks them."""
        return bool(self.save.efer & _EFER_LME and self.save.cr0 & _CR0_PG)


class _Rule(NamedTuple):
    """As :class:`qmpfilter.svm.findings.Rule`, of L2's save area; always refused. Formatted with ``l2``."""

    code: str
    field: str
    broken: Callable[[_L2], bool | int]
    text: str

    def finding(self, l2: _L2) -> Finding:
        return Finding(self.code, Severity.REFUSE, self.text.format(l2=l2), f"vmcb12_save.{self.field}")


_NP: Final = int(MiscCtl.NP)
_CR0_PG: Final = 1 << 31
_CR4_PAE: Final = 1 << 5
_EFER_LME: Final = 1 << 8
_EFER_LMA: Final = 1 << 10
_RFLAGS_VM: Final = 1 << 17
_ATTRIB_L: Final = 1 << 9

# set_v8086_seg in QEMU's target/i386/kvm/kvm.c: type 3, S, DPL 3, P.
_V8086: Final = 0x0F3
_V8086_SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs")


def _not_v8086(l2: _L2) -> bool:
    return any(
        (getattr(l2.save, f"{name}_attrib") ^ _V8086) & ATTRIB_MASK & ~NORMALISED[name] for name in _V8086_SEGMENTS
    )


# fmt: off
_RULES: Final = (
    _Rule("l2-cpl", "cpl", lambda l2: l2.save.cpl != l2.ss_dpl,
          "L2's CPL {l2.save.cpl:#x} is not the DPL of SS ({l2.ss_dpl:#x}), from which KVM would take it."),
    _Rule("l2-v8086", "rflags", lambda l2: l2.save.rflags & _RFLAGS_VM and _not_v8086(l2),
          "L2's RFLAGS {l2.save.rflags:#x} has VM (0x20000), but not all segments have the attributes 0xf3 that "
          "QEMU would load."),
    _Rule("l2-g-pat", "g_pat",
          lambda l2: l2.state.validity & Validity.G_PAT and l2.nested_paging and l2.save.g_pat != l2.pat,
          "L2's own PAT {l2.save.g_pat:#x} is not L1's {l2.pat:#x}, the only one that legacy state holds."),
    _Rule("l2-long-mode", "efer",
          lambda l2: l2.long_mode and not (l2.save.cr4 & _CR4_PAE and l2.save.efer & _EFER_LMA),
          "L2 is in long mode with CR4 {l2.save.cr4:#x} and EFER {l2.save.efer:#x}: PAE (0x20) or LMA (0x400) is "
          "clear."),
    _Rule("l2-not-long-mode", "efer",
          lambda l2: not l2.long_mode and (l2.save.efer & _EFER_LMA or l2.save.cs_attrib & _ATTRIB_L),
          "L2 is not in long mode (CR0 {l2.save.cr0:#x}), but EFER {l2.save.efer:#x} has LMA (0x400) or the "
          "attributes of CS {l2.save.cs_attrib:#x} have L (0x200)."),
)
# fmt: on
