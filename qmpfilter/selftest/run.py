# SPDX-License-Identifier: GPL-2.0-or-later
"""One case: stop the guest, convert its state, restore it, and see whether it goes on exactly as it would have.

Three machines run from the same stop: the one that was stopped; a fresh one with the state converted to svm2
and back; and a fresh one whose every L2 register was first scrambled, so that what it has of L2 is what
vmcb12_save says. All must reach the same state with the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from qmpfilter.errors import HostError, QmpfilterError
from qmpfilter.kvm.device import Kvm, Memory, Vcpu
from qmpfilter.kvm.uapi import Exit
from qmpfilter.selftest import guest, qemu
from qmpfilter.selftest.guest import Case
from qmpfilter.svm import annex, native
from qmpfilter.svm.convert import Upgrade, to_svm2
from qmpfilter.svm.downgrade import to_legacy
from qmpfilter.svm.provenance import SECTION, Confidence, moves
from qmpfilter.svm.segment import NORMALISED
from qmpfilter.svm.svm2 import Svm2State, Validity
from qmpfilter.svm.vmcb import PAGE_SIZE, SAVE, SAVE_OFFSET, save_fields
from qmpfilter.wire import cpu

__all__ = ["Result", "run"]

_SECONDS: Final = 20.0
_TRIES: Final = 3000
_LONGEST_KICK: Final = 400e-6


@dataclass
class Result:
    """What became of a case.

    :param failures: what was not as it must be, one sentence each
    :param exempt: fields of vmcb12_save that the conversion did not call exact, and whether they did differ
    """

    case: Case
    failures: list[str] = field(default_factory=list)
    exempt: dict[str, bool] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """It ran, and all was as it must be."""
        return not self.failures


@dataclass(frozen=True)
class _Stop:
    """A machine's state and memory."""

    state: qemu.State
    memory: bytes


def run(kvm: Kvm, case: Case) -> Result:
    """Run a case on this host. What the kernel refuses, and a guest that hangs, are failures of the case."""
    result = Result(case)
    try:
        result.failures += _run(kvm, case, result)
    except QmpfilterError as error:
        result.failures.append(str(error))
    return result


def _run(kvm: Kvm, case: Case, result: Result) -> Iterator[str]:
    vm, memory, vcpu = guest.prepare(kvm, case)
    with vm, vcpu:
        _reach_stop(vcpu, case)
        before = _take(vcpu, memory)
        _go_on(vcpu)
        after = _take(vcpu, memory)
    nested = before.state.nested
    if case.smi:
        if nested.guest_mode:
            yield "the nested state says that L2 is active inside of SMM"
        yield from _restored(kvm, case, before.state, before, after, "restored as it was")
        return
    if not nested.guest_mode or nested.page is None:
        yield "the stop is not inside of L2"
        return
    if nested.run_pending != case.loop:
        yield f"RUN_PENDING is {nested.run_pending} at the stop"
    upgrade = to_svm2(nested, before.state.block, before.state.subsections)
    converted, failures = _there_and_back(before.state, upgrade)
    yield from failures
    if not case.inject and not case.events:
        yield from _oracle(upgrade, after.memory, result)
        exact = to_svm2(nested, before.state.block, before.state.subsections, vmcb12=_page(before.memory))
        yield from _oracle(exact, after.memory, Result(case))
    yield from _restored(kvm, case, converted, before, after, "converted to svm2 and back")
    scrambled = _rebuilt(before.state, upgrade.state, case)
    yield from _restored(kvm, case, scrambled, before, after, "rebuilt from vmcb12_save alone")


# --- running -----------------------------------------------------------------------------------


def _reach_stop(vcpu: Vcpu, case: Case) -> None:
    """:raises HostError: the guest does something else"""
    if case.loop:
        _reach_pending_run(vcpu, case)
    else:
        _until(vcpu, guest.IN_L2)
    if case.events:
        events = vcpu.events()
        for name, value in case.events.items():
            setattr(events, name, value)
        vcpu.set_events(events)
    if case.smi:
        vcpu.smi()
        _until(vcpu, guest.IN_SMM)


def _reach_pending_run(vcpu: Vcpu, case: Case) -> None:
    """Take the vCPU out of its loop again and again, until it is between VMRUN and L2's first instruction."""
    random = Random(case.seed)
    for _ in range(_TRIES):
        reason = vcpu.run_for(random.uniform(0, _LONGEST_KICK))
        if reason is None and qemu.save(vcpu).nested.run_pending:
            return
        if reason not in (None, Exit.IO):
            raise HostError(_unexpected(vcpu, reason))
    raise HostError(f"in {_TRIES} tries the vCPU was never stopped right after VMRUN")


def _go_on(vcpu: Vcpu) -> None:
    """:raises HostError: the guest does something else"""
    _until(vcpu, guest.IN_L1)


def _until(vcpu: Vcpu, port: int) -> None:
    """Run until the guest's OUT to that port has been executed."""
    reason = vcpu.run(_SECONDS)
    if reason is not Exit.IO or vcpu.out_data()[0] != port:
        raise HostError(_unexpected(vcpu, reason))
    vcpu.complete()


def _unexpected(vcpu: Vcpu, reason: Exit | None) -> str:
    regs = vcpu.regs()
    name = "no exit" if reason is None else reason.name
    return f"the guest stopped with {name} at RIP {regs.rip:#x} (RAX {regs.rax:#x}, RFLAGS {regs.rflags:#x})"


def _take(vcpu: Vcpu, memory: Memory) -> _Stop:
    return _Stop(qemu.save(vcpu), memory.read(0, guest.MEMORY))


def _restored(kvm: Kvm, case: Case, state: qemu.State, before: _Stop, after: _Stop, how: str) -> Iterator[str]:
    """What differs after a fresh machine was given a state and went on."""
    vm, memory, vcpu = guest.start(kvm)
    with vm, vcpu:
        memory.write(0, before.memory)
        try:
            qemu.load(vcpu, state)
            _go_on(vcpu)
        except HostError as error:
            yield f"{how}: {error}"
            return
        reached = _take(vcpu, memory)
    for difference in _differences(reached, after):
        yield f"{how}: {difference}"


def _differences(reached: _Stop, wanted: _Stop) -> Iterator[str]:
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
    if reached.memory != wanted.memory:
        at = next(at for at, pair in enumerate(zip(reached.memory, wanted.memory, strict=True)) if pair[0] != pair[1])
        found, expected = reached.memory[at : at + 8].hex(), wanted.memory[at : at + 8].hex()
        yield f"memory differs from {at:#x} on: {found}, not {expected}"


def _bytes(value: object) -> object:
    return value if isinstance(value, (bytes, tuple, int)) else bytes(value)  # type: ignore[call-overload]


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
    if (back.legacy, back.block) != (nested, state.block) or back.subsections:
        failures.append("svm2 does not give the legacy state back byte for byte")
    return replace(state, nested=replace(back.legacy, page=page), block=back.block), failures


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


def _page(memory: bytes) -> bytes:
    return memory[guest.VMCB12 : guest.VMCB12 + PAGE_SIZE]


def _oracle(upgrade: Upgrade, memory: bytes, result: Result) -> Iterator[str]:
    """Fields in which vmcb12_save is not what KVM itself wrote at #VMEXIT, and L1's VMSAVE after it."""
    written = _page(memory)[SAVE_OFFSET:]
    for finding in upgrade.fields:
        register = finding.field.removeprefix("vmcb12_save.")
        if register == finding.field:
            continue
        differing = [
            f"{name} {ours:#x}, not {theirs:#x}"
            for name in save_fields(register)
            if (ours := SAVE.get(upgrade.state.vmcb12_save, name)) != (theirs := SAVE.get(written, name))
        ]
        if finding.confidence is Confidence.CANON:
            mask = NORMALISED[register]
            name = f"{register}_attrib"
            changed = SAVE.get(upgrade.state.vmcb12_save, name) ^ SAVE.get(written, name)
            if not changed & ~mask:
                differing = [text for text in differing if not text.startswith(name)]
            result.exempt[f"{register}'s normalised attributes"] = bool(changed & mask)
        elif finding.confidence is not Confidence.EXACT:
            result.exempt[register] = bool(differing)
            continue
        if differing:
            yield f"oracle: {finding.confidence.value} field {register}: {', '.join(differing)}"
