# SPDX-License-Identifier: GPL-2.0-or-later
"""One case: stop the guest, convert its state, restore it, and see whether it goes on exactly as it would have.

Machines run from the same stop: the one that was stopped; a fresh one with the state converted to svm2 and
back; and a fresh one whose every L2 register was first scrambled, so that what it has of L2 is what
vmcb12_save says. All must reach the same state with the same memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from qmpfilter.errors import HostError, QmpfilterError
from qmpfilter.kvm.device import Kvm, Memory, Vcpu
from qmpfilter.kvm.uapi import Exit
from qmpfilter.selftest import guest, qemu
from qmpfilter.selftest.case import Case
from qmpfilter.selftest.memory import COUNTER, IN_L1, IN_L2, IN_SMM, MEMORY, VMCB12
from qmpfilter.svm import annex, native
from qmpfilter.svm.convert import Upgrade, to_svm2
from qmpfilter.svm.downgrade import to_legacy
from qmpfilter.svm.provenance import SECTION, Confidence, moves
from qmpfilter.svm.segment import NORMALISED
from qmpfilter.svm.svm2 import Svm2State, Validity
from qmpfilter.svm.vmcb import CONTROL, PAGE_SIZE, SAVE, SAVE_OFFSET, RegisterClass, registers, save_fields
from qmpfilter.wire import cpu

__all__ = ["Result", "Stop", "differences", "reach_stop", "run", "take", "until"]

_SECONDS: Final = 20.0
_LONGER: Final = 1.1
_KEPT: Final = (Confidence.EXACT, Confidence.CANON)
_REGISTERS: Final = frozenset(register for kind in RegisterClass for register in registers(kind))
# APM volume 2 appendix C.
_VMEXIT_VMMCALL: Final = 0x81


@dataclass
class Result:
    """What became of a case.

    :param failures: what was not as it must be, one sentence each
    :param exempt: registers of vmcb12_save that the conversion itself did not call exact, and whether they
        were not what KVM had
    :param exempt_with_memory: the same where the conversion was given VMCB12 from guest memory
    """

    case: Case
    failures: list[str] = field(default_factory=list)
    exempt: dict[str, bool] = field(default_factory=dict)
    exempt_with_memory: dict[str, bool] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """It ran, and all was as it must be."""
        return not self.failures


@dataclass(frozen=True)
class Stop:
    """A machine's state and memory."""

    state: qemu.State
    memory: bytes

    @property
    def vmcb12(self) -> bytes:
        """The page."""
        return self.memory[VMCB12 : VMCB12 + PAGE_SIZE]

    def with_vmcb12(self, page: bytes) -> bytes:
        """The memory with another page there."""
        return self.memory[:VMCB12] + page + self.memory[VMCB12 + PAGE_SIZE :]

    @property
    def handled(self) -> int:
        """How often L2's handler ran."""
        return int.from_bytes(self.memory[COUNTER : COUNTER + 4], "little")


def run(kvm: Kvm, case: Case) -> Result:
    """Run a case on this host. What the kernel refuses, and a guest that hangs, are failures of the case."""
    result = Result(case)
    try:
        for failure in _run(kvm, case, result):
            result.failures.append(failure)
    except QmpfilterError as error:
        result.failures.append(str(error))
    return result


def _run(kvm: Kvm, case: Case, result: Result) -> Iterator[str]:
    vm, memory, vcpu = guest.prepare(kvm, case)
    with vm, vcpu:
        reach_stop(vcpu, case)
        before = take(vcpu, memory)
        until(vcpu, IN_L1)
        after = take(vcpu, memory)
    nested = before.state.nested
    if case.smi:
        if nested.guest_mode:
            yield "the nested state says that L2 is active inside of SMM"
        yield from _restored(kvm, before.state, before, after, "restored as it was", frozenset())
        return
    if not nested.guest_mode or nested.page is None:
        yield "the stop is not inside of L2"
        return
    if nested.run_pending != case.loop:
        yield f"RUN_PENDING is {nested.run_pending} at the stop"
    if (code := CONTROL.get(after.vmcb12, "exit_code")) != _VMEXIT_VMMCALL:
        yield f"L2 ended with exit code {code:#x}, not VMMCALL ({_VMEXIT_VMMCALL:#x})"
    if after.handled - before.handled != case.handled:
        yield f"L2's handler ran {after.handled - before.handled} times, not {int(case.handled)}"

    block, subsections = before.state.block, before.state.subsections
    alone = to_svm2(nested, block, subsections)
    yield from _proved(kvm, case, before, after, alone, result.exempt, "")
    with_memory = to_svm2(nested, block, subsections, vmcb12=before.vmcb12)
    if with_memory.state != alone.state:
        yield from _proved(
            kvm, case, before, after, with_memory, result.exempt_with_memory, " with VMCB12 from guest memory"
        )


def _proved(
    kvm: Kvm, case: Case, before: Stop, after: Stop, upgrade: Upgrade, exempt: dict[str, bool], how: str
) -> Iterator[str]:
    """What is wrong with a conversion and with the machines that were given its result."""
    if not case.handled:
        # Otherwise L2 goes through its handler before #VMEXIT.
        yield from _oracle(upgrade, after, exempt, f"oracle{how}")
    converted, failures = _there_and_back(before.state, upgrade)
    yield from failures
    scrambled = _rebuilt(before.state, upgrade.state, case)
    doubtful = frozenset(
        finding.field.removeprefix("vmcb12_save.") for finding in upgrade.fields if finding.confidence not in _KEPT
    )
    yield from _restored(kvm, converted, before, after, f"converted to svm2 and back{how}", doubtful)
    yield from _restored(kvm, scrambled, before, after, f"rebuilt from vmcb12_save alone{how}", doubtful)


# --- running -----------------------------------------------------------------------------------


def reach_stop(vcpu: Vcpu, case: Case) -> None:
    """Run a case's guest until it is where the case wants it.

    :raises HostError: the guest does something else
    """
    if case.loop:
        _reach_pending_run(vcpu, case)
    else:
        until(vcpu, IN_L2)
    if case.events:
        events = vcpu.events()
        for name, value in case.events.items():
            setattr(events, name, value)
        vcpu.set_events(events)
    if case.smi:
        vcpu.smi()
        until(vcpu, IN_SMM)


def _reach_pending_run(vcpu: Vcpu, case: Case) -> None:
    """Take the vCPU out of its loop again and again, until it is between VMRUN and L2's first instruction.

    The signal comes at random within the time that one turn of the loop takes here.
    """
    random = Random(case.seed)
    end = time.monotonic() + _SECONDS
    turn = 0.0
    while (begin := time.monotonic()) < end:
        reason = vcpu.run_for(random.uniform(0, turn) if turn else _SECONDS)
        if reason is None and qemu.save(vcpu).nested.run_pending:
            return
        if reason not in (None, Exit.IO):
            raise HostError(_unexpected(vcpu, reason))
        if reason is Exit.IO:
            vcpu.complete()
            turn = (turn + time.monotonic() - begin) / 2
        else:
            # Without this a turn that is always cut short would never be measured again.
            turn *= _LONGER
    raise HostError(f"within {_SECONDS:g} s the vCPU was never stopped right after VMRUN")


def until(vcpu: Vcpu, port: int) -> None:
    """Run until the guest's OUT to that port has been executed.

    :raises HostError: the guest does something else
    """
    reason = vcpu.run(_SECONDS)
    if reason is not Exit.IO or vcpu.out_data()[0] != port:
        raise HostError(_unexpected(vcpu, reason))
    vcpu.complete()


def _unexpected(vcpu: Vcpu, reason: Exit | None) -> str:
    regs = vcpu.regs()
    name = "no exit" if reason is None else reason.name
    return f"the guest stopped with {name} at RIP {regs.rip:#x} (RAX {regs.rax:#x}, RFLAGS {regs.rflags:#x})"


def take(vcpu: Vcpu, memory: Memory) -> Stop:
    """What there is of a machine that does not run."""
    return Stop(qemu.save(vcpu), memory.read(0, MEMORY))


def _restored(
    kvm: Kvm, state: qemu.State, before: Stop, after: Stop, how: str, doubtful: frozenset[str]
) -> Iterator[str]:
    """What differs after a fresh machine was given a state and went on."""
    vm, memory, vcpu = guest.start(kvm)
    with vm, vcpu:
        memory.write(0, before.memory)
        try:
            qemu.load(vcpu, state)
            until(vcpu, IN_L1)
        except HostError as error:
            yield f"{how}: {error}"
            return
        reached = take(vcpu, memory)
    for difference in differences(reached, after, doubtful):
        yield f"{how}: {difference}"


def differences(reached: Stop, wanted: Stop, doubtful: frozenset[str]) -> Iterator[str]:
    """What is not the same after a restore, one sentence each.

    :param doubtful: registers of VMCB12 that may differ
    """
    ours, theirs = reached.state, wanted.state
    if ours.nested != theirs.nested:
        yield f"nested state is {ours.nested}, not {theirs.nested}"
    for name in cpu.BLOCK.fields:
        span = cpu.BLOCK.span(name)
        if ours.block[span] != theirs.block[span]:
            yield f"L1's {name} is {ours.block[span].hex()}, not {theirs.block[span].hex()}"
    for index, what in enumerate(("XSAVE area", "XCRs", "DR0 to DR3", "events", "MP state")):
        if _bytes(ours.shared[index]) != _bytes(theirs.shared[index]):
            yield f"the {what} differ"
    yield from _memory_differences(reached, wanted, doubtful)


def _bytes(value: object) -> object:
    return value if isinstance(value, (bytes, tuple, int)) else bytes(value)  # type: ignore[call-overload]  # a buffer of ctypes


# Attributes that KVM recomputes when they pass through the vCPU's registers, by field.
_RECOMPUTED: Final[Mapping[str, int]] = {f"{register}_attrib": mask for register, mask in NORMALISED.items()}


def _memory_differences(reached: Stop, wanted: Stop, doubtful: frozenset[str]) -> Iterator[str]:
    """VMCB12 is compared field by field, because of what a restore cannot keep in it: registers that the conversion
    itself does not call exact, and attributes that KVM recomputes. All else has to be the same."""
    free = {name for register in doubtful & _REGISTERS for name in save_fields(register)}
    pages = [bytearray(reached.vmcb12), bytearray(wanted.vmcb12)]
    for name in SAVE.fields:
        ours, theirs = (SAVE.get(page, name, SAVE_OFFSET) for page in pages)
        if name not in free and (ours ^ theirs) & ~_RECOMPUTED.get(name, 0):
            yield f"VMCB12's {name} is {ours:#x}, not {theirs:#x}"
        for page in pages:
            SAVE.put(page, name, 0, SAVE_OFFSET)
    ours_rest, theirs_rest = reached.with_vmcb12(bytes(pages[0])), wanted.with_vmcb12(bytes(pages[1]))
    if ours_rest != theirs_rest:
        at = next(at for at, pair in enumerate(zip(ours_rest, theirs_rest, strict=True)) if pair[0] != pair[1])
        found, expected = ours_rest[at : at + 8].hex(), theirs_rest[at : at + 8].hex()
        yield f"memory differs from {at:#x} on: {found}, not {expected}"


# --- conversions -------------------------------------------------------------------------------


def _there_and_back(state: qemu.State, upgrade: Upgrade) -> tuple[qemu.State, list[str]]:
    """The state after all carriers, with the record still in its page, as a filter would send it."""
    failures = []
    nested = state.nested
    page = annex.encode(upgrade.state)
    told = annex.decode(page, nested.vmcb_pa, run_pending=nested.run_pending, gif=nested.gif)
    if told != upgrade.state or native.decode_blob(native.encode_blob(upgrade.state)) != upgrade.state:
        failures.append("the carriers do not give the svm2 state back")
    back = to_legacy(upgrade.state, state.block, state.subsections)
    block = bytearray(back.block)
    for name in _CORRECTED:
        cpu.BLOCK.put(block, name, cpu.BLOCK.get(state.block, name))
    if (back.legacy, bytes(block)) != (nested, state.block) or back.subsections:
        failures.append("svm2 does not give the legacy state back byte for byte")
    return replace(state, nested=replace(back.legacy, page=page), block=back.block), failures


# Where a conversion that knows L2's DR7 corrects the section.
_CORRECTED: Final = ("dr7", "dr5")


def _rebuilt(state: qemu.State, svm2: Svm2State, case: Case) -> qemu.State:
    """The state with every register of L2 first made something else, then rebuilt from svm2."""
    random = Random(case.seed)
    block = bytearray(state.block)
    for row in SECTION:
        if row.written and (row.register != "dr7" or svm2.validity & Validity.DR7):
            for move in moves(row):
                span = cpu.BLOCK.span(move.block)
                block[span] = random.randbytes(span.stop - span.start)
    for mirror in ("dr4", "dr5"):
        cpu.BLOCK.put(block, mirror, 0)
    back = to_legacy(svm2, bytes(block), state.subsections)
    return replace(state, nested=back.legacy, block=back.block)


def _oracle(upgrade: Upgrade, after: Stop, exempt: dict[str, bool], how: str) -> Iterator[str]:
    """Fields in which vmcb12_save is not what KVM itself wrote at #VMEXIT, and L1's VMSAVE after it."""
    for finding in upgrade.fields:
        register = finding.field.removeprefix("vmcb12_save.")
        if register == finding.field:
            continue
        differing = []
        for name in save_fields(register):
            ours = SAVE.get(upgrade.state.vmcb12_save, name)
            theirs = SAVE.get(after.vmcb12, name, SAVE_OFFSET)
            recomputed = _RECOMPUTED.get(name, 0) if finding.confidence is Confidence.CANON else 0
            if (ours ^ theirs) & ~recomputed:
                differing.append(f"{name} {ours:#x}, not {theirs:#x}")
            if recomputed:
                exempt[f"{register}'s recomputed attributes"] = ours != theirs
        if finding.confidence not in _KEPT:
            exempt[register] = bool(differing)
        elif differing:
            yield f"{how}: {finding.confidence.value} field {register}: {', '.join(differing)}"
