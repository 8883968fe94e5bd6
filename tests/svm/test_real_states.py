# SPDX-License-Identifier: GPL-2.0-or-later
"""States of every kind that a real kernel produced, and their way through every carrier and back.

The recordings are found by the letter of the vCPU's mode, which says what L1 and L2 did (tests/lab/inhost/modes.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from qmpfilter.svm import annex, native
from qmpfilter.svm.convert import to_svm2
from qmpfilter.svm.downgrade import to_legacy
from qmpfilter.svm.legacy import LegacyState
from qmpfilter.svm.section import CpuSection
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET
from qmpfilter.wire import cpu
from tests.helpers.fixtures import Fixture, fixtures
from tests.helpers.vcpus import sections_of

HOSTS = ("old", "mid", "new")

GUEST_MODE, RUN_PENDING, GIF_SET = 0x1, 0x2, 0x100
CR0_PG, CR4_PSE, CR4_PAE = 1 << 31, 1 << 4, 1 << 5
EFER_LMA, RFLAGS_IF = 1 << 10, 1 << 9
CS_D, CS_L = 1 << 22, 1 << 21
V_GIF, V_INTR_MASKING, V_GIF_ENABLE = 1 << 9, 1 << 24, 1 << 25
DR7_OF_L1, DR7_IN_VMCB12, DR7_WRITTEN = 0x500, 0x700, 0x600
HF2_NMI = 1 << 2  # QEMU target/i386/cpu.h: NMIs are masked
INJECTED_GP = 0x8000_0B0D  # valid, with an error code, exception 13


@dataclass(frozen=True)
class Caught:
    """One vCPU of a recording, and what is known of it beside the stream."""

    fixture: Fixture
    section: CpuSection

    @property
    def nested(self) -> LegacyState:
        """Its nested state; it has one."""
        assert self.section.nested is not None
        return self.section.nested

    @property
    def page(self) -> bytes:
        """Its page; it has one."""
        assert self.nested.page is not None
        return self.nested.page

    @property
    def flags(self) -> int:
        """kvm_nested_state.flags."""
        return self.nested.flags

    def cpu(self, name: str) -> int:
        """A field of the `cpu` section: L2's, if the vCPU is in L2."""
        return int(cpu.BLOCK.get(self.section.block, name))

    def control(self, name: str) -> int:
        """A field of VMCB12's control area."""
        return int(CONTROL.get(self.page, name))

    def l1(self, name: str) -> int:
        """A field of L1's save area."""
        return int(SAVE.get(self.page, name, SAVE_OFFSET))

    def memory(self) -> bytes:
        """VMCB12 in guest memory."""
        return bytes.fromhex(self.fixture.truth()["vmcb12"][str(self.section.index)]["bytes"])

    def registers(self) -> dict[str, Any]:
        """What QEMU said of its registers."""
        values: dict[str, Any] = self.fixture.truth()["registers"][str(self.section.index)]["values"]
        return values

    def symbol(self, name: str) -> int:
        """An address in the guest."""
        return int(self.fixture.truth()["guest"]["symbols"][name], 16)


def caught(letters: str, host: str) -> list[Caught]:
    """The vCPUs of a host's recordings whose mode has one of these letters."""
    return [vcpu for letter, vcpu in _every(host) if letter in letters]


@functools.cache
def _every(host: str) -> list[tuple[str, Caught]]:
    """The vCPUs of a host's recordings that have a letter, with it."""
    found = []
    for fixture in fixtures(host=host):
        letters = {facts["index"]: facts["letter"] for facts in fixture.facts["vcpus"] if facts.get("letter")}
        sections = sections_of(fixture.file("stream")) if letters else ()
        found += [(letters[one.index], Caught(fixture, one)) for one in sections if one.index in letters]
    return found


# --- what is special about each kind ------------------------------------------------------------


def nested_paging_on(vcpu: Caught) -> bool:
    return bool(vcpu.control("misc_ctl") == 1 and vcpu.control("nested_cr3") == vcpu.symbol("npt_pml4"))


def nested_paging_off(vcpu: Caught) -> bool:
    return bool(vcpu.control("misc_ctl") == 0 and vcpu.control("nested_cr3") == 0)


def in_32_bit_mode(vcpu: Caught) -> bool:
    return bool(
        vcpu.cpu("cr0") & CR0_PG
        and not vcpu.cpu("efer") & EFER_LMA
        and vcpu.cpu("cs_flags") & (CS_D | CS_L) == CS_D
        and vcpu.l1("efer") & EFER_LMA
    )


def with_pae(vcpu: Caught) -> bool:
    return bool(
        in_32_bit_mode(vcpu)
        and vcpu.cpu("cr4") & (CR4_PAE | CR4_PSE) == CR4_PAE
        and vcpu.cpu("cr3") == vcpu.symbol("pae_pdpts") + 32 * vcpu.section.index
    )


def without_pae(vcpu: Caught) -> bool:
    return bool(
        in_32_bit_mode(vcpu)
        and vcpu.cpu("cr4") & (CR4_PAE | CR4_PSE) == CR4_PSE
        and vcpu.cpu("cr3") == vcpu.symbol("legacy_directory")
    )


def gif_of_l1_clear(vcpu: Caught) -> bool:
    return vcpu.flags == GUEST_MODE and not vcpu.cpu("hflags2") & cpu.HF2_GIF


def gif_clear_in_l1(vcpu: Caught) -> bool:
    return (
        vcpu.section.nested is None
        and not vcpu.cpu("hflags2") & cpu.HF2_GIF
        and vcpu.cpu("cr3") == vcpu.symbol("l1_pml4")
    )


def virtual_gif(bits: int) -> Callable[[Caught], bool]:
    return lambda vcpu: vcpu.flags & GIF_SET != 0 and vcpu.control("int_ctl") & (V_GIF | V_GIF_ENABLE) == bits


def interrupts_masked(of_l1: int, of_l2: int) -> Callable[[Caught], bool]:
    def masked(vcpu: Caught) -> bool:
        int_ctl = vcpu.control("int_ctl")
        return (
            int_ctl & V_INTR_MASKING != 0
            and int_ctl & 0xF == 3
            and vcpu.l1("rflags") & RFLAGS_IF == of_l1
            and vcpu.cpu("rflags") & RFLAGS_IF == of_l2
        )

    return masked


def interrupts_not_masked(vcpu: Caught) -> bool:
    return not vcpu.control("int_ctl") & V_INTR_MASKING


def debug_register_untouched(vcpu: Caught) -> bool:
    """KVM gives L1's DR7 for L2's; the memory of the guest alone has L2's. The PATs differ as well."""
    memory = vcpu.memory()
    return (
        vcpu.cpu("dr7") == vcpu.l1("dr7") == DR7_OF_L1
        and SAVE.get(memory, "dr7", SAVE_OFFSET) == DR7_IN_VMCB12
        and SAVE.get(memory, "g_pat", SAVE_OFFSET) != vcpu.cpu("pat")
    )


def debug_register_written(vcpu: Caught) -> bool:
    return vcpu.cpu("dr7") == DR7_WRITTEN and vcpu.l1("dr7") == DR7_OF_L1


def run_pending_with_event(vcpu: Caught) -> bool:
    return (
        vcpu.section.nested is not None
        and vcpu.flags == GUEST_MODE | RUN_PENDING | GIF_SET
        and vcpu.control("event_inj") & 0xFFFF_FFFF == INJECTED_GP
        and vcpu.cpu("rip") == vcpu.symbol("nothing_injected")
    )


def nmi_pending(vcpu: Caught) -> bool:
    """One NMI is taken and its handler masks the next."""
    return bool(vcpu.flags & GUEST_MODE and vcpu.cpu("nmi_pending") == 1 and vcpu.cpu("hflags2") & HF2_NMI)


def smm_detour(vcpu: Caught) -> bool:
    """KVM has left L2 for the time in SMM: no nested state travels besides what stands in memory."""
    return (
        vcpu.section.nested is None
        and vcpu.cpu("hflags") & (cpu.HF_SMM | cpu.HF_GUEST) == cpu.HF_SMM
        and vcpu.registers()["SMM"] == "1"
        and vcpu.cpu("vm_hsave") != 0
    )


class Kind(NamedTuple):
    """Vcpus of ``letters`` are of this kind: all of them, or one at least."""

    letters: str
    special: Callable[[Caught], bool]
    always: bool = True


KINDS = {
    "nested paging on": Kind("pwvVIdDN", nested_paging_on),
    "nested paging off": Kind("PWci", nested_paging_off),
    "PAE L2": Kind("pP", with_pae),
    "32-bit L2 without PAE": Kind("wW", without_pae),
    "L1's GIF clear in L2": Kind("c", gif_of_l1_clear),
    "GIF clear in L1": Kind("0", gif_clear_in_l1),
    "vGIF, set": Kind("V", virtual_gif(V_GIF | V_GIF_ENABLE)),
    "vGIF, clear": Kind("v", virtual_gif(V_GIF_ENABLE)),
    "V_INTR_MASKING, IF in L2": Kind("i", interrupts_masked(0, RFLAGS_IF)),
    "V_INTR_MASKING, IF in L1": Kind("I", interrupts_masked(RFLAGS_IF, 0)),
    "no V_INTR_MASKING": Kind("W", interrupts_not_masked),
    "DR7 of VMCB12": Kind("d", debug_register_untouched),
    "DR7 that L2 wrote": Kind("D", debug_register_written),
    "RUN_PENDING with an event to inject": Kind("r", run_pending_with_event, always=False),
    "pending NMI": Kind("N", nmi_pending),
    "SMM": Kind("s", smm_detour),
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_was_recorded(name: str, host: str) -> None:
    letters, special, always = KINDS[name]
    vcpus = caught(letters, host)
    assert vcpus, f"no recording of {host} has a vCPU of {letters}"
    found = [special(vcpu) for vcpu in vcpus]
    assert all(found) if always else any(found)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("letters", sorted({kind.letters for kind in KINDS.values()}))
def test_every_kind_comes_back_from_every_carrier(letters: str, host: str) -> None:
    for vcpu in caught(letters, host):
        legacy, block, subsections = vcpu.section.nested, vcpu.section.block, vcpu.section.subsections
        if legacy is None or legacy.page is None:
            continue
        state = to_svm2(legacy, block, subsections).state
        for _ in range(2):
            page = annex.encode(state)
            decoded = annex.decode(page, legacy.vmcb_pa, run_pending=legacy.run_pending, gif=legacy.gif)
            assert decoded == state
            state = native.decode_blob(native.encode_blob(decoded))
            state = native.decode_subsections(*native.encode_subsections(state))
        assert annex.strip(annex.encode(state)) == legacy.page
        back = to_legacy(state, block, subsections)
        assert (back.legacy, back.block, back.subsections, back.fields) == (legacy, block, {}, ())
