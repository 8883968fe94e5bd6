# SPDX-License-Identifier: GPL-2.0-or-later
"""One main channel under a policy: bytes in, pieces out, the commit point marked, or a reason to stop.

A gate reads the stream, judges every vCPU in L2 for the destination, has the rewriter edit it, and lets the
commit point pass when nothing speaks against it. Where nothing is to be changed (observe, or the kill switch), what
cannot be read passes all the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from qmpfilter.errors import BugError, HostError, PolicyError, QmpfilterError, StreamError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.policy import Enforcement, Mode, Policy, objections
from qmpfilter.filter.rewriter import AtHand, Rewriter, VcpuReport
from qmpfilter.filter.vcpu import Decision
from qmpfilter.svm.legacy import FORMAT_SVM
from qmpfilter.svm.section import CpuSection
from qmpfilter.value_class import value_class
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.judge import Verdict, judge_section
from qmpfilter.wire import cpu
from qmpfilter.wire.events import (
    CommandReceived,
    DeviceSection,
    Event,
    IterableEnd,
    IterableStart,
    MachineConfiguration,
    PackageEnd,
    RamRecords,
    SectionsEnd,
    SectionsHeld,
    VmDescriptionReceived,
)
from qmpfilter.wire.feed import NeedData
from qmpfilter.wire.framing import Command
from qmpfilter.wire.parser import State, StreamParser

__all__ = ["Gate", "Judged", "Memory", "Piece"]

_log: Final = logging.getLogger(__name__)

# Before these a byte cannot be the commit point.
_BEFORE_TAIL: Final = (State.HEADER, State.CONFIGURATION, State.SETUP, State.ITERATE)


# So much of the tail is kept to be digested once it has passed; of more, digesting on the way is the lesser evil.
_MOST_KEPT: Final = 8 << 20

# What ends the state of devices, and with it the guest's life at the source.
_LAST: Final = (VmDescriptionReceived, PackageEnd)

# After these a section may begin.
_CLOSED: Final = (MachineConfiguration, CommandReceived, IterableEnd, DeviceSection)

Memory = Callable[[Sequence[int]], Mapping[int, bytes]]
"""Reads pages of guest memory: 4096 bytes each by their addresses."""


class Piece(NamedTuple):
    """Bytes to pass on now. The tail begins with a piece without any: from then on the guest stands still, and what
    is asked for before the next one may take its time.

    :param commit: with them the destination may start the guest
    """

    data: bytes | memoryview
    commit: bool = False


@value_class
class Judged:
    """The verdict for one vCPU."""

    index: int
    verdict: Verdict


class Gate:
    """Sees one main channel.

    :param policy: what the operator wants
    :param is_off: asked when the source connects, and before the first edit; True lets the rest pass as it is
    :param memory: asked for the pages at which VMCB12s stand, when the source has sent all of its devices and so
        answers again; raises HostError where it cannot be told
    :ivar return_path: the source has asked for a return path
    :ivar postcopy: the source has sent a package: with its last byte the destination starts the guest
    :ivar between_sections: what was passed on so far ends where a section may begin
    :ivar machine: the machine type, once it was sent
    :ivar sections: those of the vCPUs so far, as they came
    :ivar judged: the verdicts so far, in the stream's order
    :ivar memory_read: how many pages of guest memory were read
    :ivar missing: facts of the destination that would have made a verdict certain, in words
    :ivar warnings: what the operator should know, one sentence each
    """

    def __init__(
        self, policy: Policy, is_off: Callable[[], bool] = lambda: False, memory: Memory | None = None
    ) -> None:
        self.return_path = False
        self.postcopy = False
        self.between_sections = False
        self.machine = ""
        self.sections: list[DeviceSection] = []
        self.judged: list[Judged] = []
        self.missing: set[str] = set()
        self.warnings: list[str] = []
        self.switched_off = False
        self.memory_read = 0
        self._policy = policy
        self._is_off = is_off
        self._parser = StreamParser()
        self._rewriter: Rewriter | None = Rewriter(policy.mode.target)
        self._vcpus = self._rewriter.vcpus
        self._edits = 0
        self._as_is = policy.mode is Mode.OBSERVE
        self._blind = policy.mode is Mode.OFF
        self._asked = False
        self._holds = False
        self._memory = memory
        self._deferred: list[tuple[Event, AtHand | None]] = []
        self._package: list[bytes | memoryview] | None = None
        self._told = 0
        self._ahead = 0
        self._given = 0
        self._rest = bytearray()
        self._committed = False
        self._tail: tuple[list[bytes], list[bytes]] = ([], [])
        self._kept = 0
        self._digests = hashlib.sha256(), hashlib.sha256()

    @property
    def policy(self) -> Policy:
        """What the operator wants, with what is known of the destination by now."""
        return self._policy

    def learn(self, facts: HostFacts, native: bool) -> None:
        """Before the stream: what the destination's filter told, see
        :meth:`~qmpfilter.filter.policy.Policy.informed`.

        :raises PolicyError: it does not take what the operator wants
        """
        self._policy = self._policy.informed(facts, native)

    @property
    def admitted(self) -> bool:
        """Whether the source waits for an answer is known, or does not matter."""
        return self._blind or self.return_path or self._policy.without_return_path

    @property
    def holding(self) -> bool:
        """The tail has begun and its end was not passed on yet."""
        return not self._blind and self._parser.state in (State.TAIL, State.DESCRIPTION, State.PACKAGE)

    @property
    def vcpus(self) -> list[VcpuReport]:
        """What became of the vCPUs, or when observing would have, in the stream's order."""
        return self._vcpus

    @property
    def edits(self) -> int:
        """How many sections were changed."""
        return self._edits

    @property
    def digests(self) -> tuple[str, str]:
        """SHA-256 of the device sections, package and vmdesc as they came and as they went."""
        self._digest()
        return self._digests[0].hexdigest(), self._digests[1].hexdigest()

    def accept(self) -> bool:
        """The source has connected, and sent nothing yet. True if all that comes passes unread, whatever it is."""
        if not self._blind and self._is_off():
            self._blind = self.switched_off = True
        return self._blind

    def pass_pages(self, data: memoryview) -> bool:
        """Take the next bytes if they are nothing but guest memory, which passes as it is. To be asked before
        :meth:`receive_data`, which takes what this did not."""
        if self._blind or not self._parser.pass_pages(data):
            return False
        self.between_sections = False
        self._given += len(data)
        self._told = self._given
        self._rest.clear()
        return True

    def receive_data(self, data: memoryview) -> Iterator[Piece]:
        """Pieces refer to `data`, which stays unchanged until all were taken.

        :raises StreamError: the stream is damaged, unsupported, or has state that no conversion touches
        :raises PolicyError: the migration is vetoed
        """
        if self._blind:
            yield Piece(data, commit=True)
            return
        start = self._given
        self._given += len(data)
        try:
            self._parser.receive_data(data)
            yield from self._events()
        except StreamError as error:
            if not self._as_is:
                raise
            yield from self._give_up(error, data, start)
        except QmpfilterError:
            raise
        except Exception as error:
            if not self._as_is:
                raise
            # Who only wanted to look loses no migration by a fault of ours.
            _log.exception("the stream")
            yield from self._give_up(BugError(f"{type(error).__name__}: {error}"), data, start)
        else:
            self._keep(data, start)

    def receive_eof(self) -> Iterator[Piece]:
        """The source has closed its side.

        :raises StreamError: it did so before the commit point, of a stream that is edited
        """
        if self._blind:
            return
        before = self._parser.state
        try:
            self._parser.receive_eof()
            yield from self._events()
        except StreamError as error:
            if not self._as_is:
                raise
            for piece in self._give_up(error, memoryview(b""), self._given):
                # A source that cancels has sent no commit point.
                yield Piece(piece.data, before not in _BEFORE_TAIL)

    # --- passing as it is ----------------------------------------------------------------------

    def _keep(self, data: memoryview, start: int) -> None:
        """Remember what of the input no event told yet, should it have to pass unread."""
        if self._told >= start:
            self._rest = bytearray(data[self._told - start :])
        else:
            del self._rest[: len(self._rest) - (start - self._told)]
            self._rest += data

    def _give_up(self, error: QmpfilterError, data: memoryview, start: int) -> Iterator[Piece]:
        """What cannot be read passes all the same: nothing was to be changed."""
        self._blind = True
        self.between_sections = False
        self.warnings.append(f"The stream could not be read any further and passed unread: {error}")
        untold = max(start - self._told, 0)
        for piece in (*(self._package or ()), memoryview(self._rest)[len(self._rest) - untold :] if untold else b"",
                      data[max(self._told - start, 0) :]):  # fmt: skip
            if piece:
                yield Piece(piece, commit=True)

    # --- events --------------------------------------------------------------------------------

    def _events(self) -> Iterator[Piece]:
        while not isinstance(event := self._parser.next_event(), NeedData):
            if isinstance(event, RamRecords):
                self.between_sections = False
                self._told = event.offset + len(event.raw)
                yield Piece(event.raw)
                continue
            self._note(event)
            if self.holding and not self._holds:
                self._holds = True
                yield Piece(b"")
            if isinstance(event, SectionsHeld):
                # What waits for guest memory goes first.
                if not self._deferred:
                    self.between_sections = False
                    self._told = self._ahead = event.offset + len(event.ahead)
                    yield Piece(event.ahead)
                continue
            packaged = isinstance(event, CommandReceived) and event.command is Command.PACKAGED
            self.postcopy |= packaged
            vcpu = _section_of_vcpu(event)
            # Of another version, the rewriter says that it cannot be read.
            told = None
            if vcpu is not None and vcpu.version_id == cpu.VERSION:
                told = CpuSection.of(vcpu)
                self.sections.append(vcpu)
            if not self._asked and (packaged or vcpu):
                # Never later: what was begun is finished.
                self._asked = True
                self.switched_off = self._is_off()
                if self.switched_off:
                    self._as_is, self._rewriter = True, None
            at_hand = None
            if vcpu is not None and told is not None:
                decision = self._early(vcpu, told)
                at_hand = AtHand(told, decision)
                if not self.switched_off:
                    self._judge(told if decision is None else _arriving(told, decision))
            if self._deferred or (told is not None and self._needs_memory(told)):
                self._deferred.append((event, at_hand))
                if not isinstance(event, _LAST):
                    continue
                self._read_memory()
                deferred, self._deferred = self._deferred, []
                for late in deferred:
                    yield from self._pass(*late)
            else:
                yield from self._pass(event, at_hand)

    def _pass(self, event: Event, at_hand: AtHand | None = None) -> Iterator[Piece]:
        pieces = self._edited(event, at_hand)
        if self._as_is:
            pieces = self._unedited(event)
        commit = isinstance(event, _LAST) or (self._as_is and isinstance(event, SectionsEnd))
        end = event.offset + len(event.raw)
        self._told = max(self._told, end)
        if not self._committed and self._parser.state not in _BEFORE_TAIL and not isinstance(event, IterableStart):
            self._tail[0].append(bytes(event.raw))
            self._tail[1].extend(map(bytes, pieces))
            self._kept += len(event.raw)
            if self._kept > _MOST_KEPT:
                self._digest()
        if event.offset < self._ahead:
            pieces = self._rest_of(event, pieces)
        if pieces or end == self._ahead:
            self.between_sections = isinstance(event, _CLOSED)
        for piece in pieces:
            yield Piece(piece, commit)
        if isinstance(event, _LAST):
            self._committed = True
            self._digest()
            # Nothing is edited any more, and the destination may run the guest already: whatever comes, passes.
            self._as_is, self._rewriter = True, None

    def _rest_of(self, event: Event, pieces: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
        """What of an event did not pass before its end was known."""
        if len(pieces) != 1 or pieces[0] is not event.raw:
            raise BugError(f"{type(event).__name__} at {event.offset} was edited after it had passed")
        rest = event.raw[self._ahead - event.offset :]
        return (rest,) if rest else ()

    # --- VMCB12 in guest memory ----------------------------------------------------------------

    def _needs_memory(self, told: CpuSection) -> bool:
        """What legacy state leaves to be guessed is settled by memory, if the record that holds it is wanted."""
        return (
            self._memory is not None
            and not self._as_is
            and self._policy.mode is not Mode.LEGACY
            and _vmcb_pa(told) is not None
        )

    def _read_memory(self) -> None:
        vcpus = [at_hand.told for _, at_hand in self._deferred if at_hand is not None]
        places = sorted({place for told in vcpus if (place := _vmcb_pa(told)) is not None})
        if self._memory is None or self._rewriter is None:
            raise BugError("guest memory was to be read, and nobody to read it or to use it")
        try:
            pages = self._memory(places)
        except HostError as error:
            self.warnings.append(
                f"VMCB12 could not be read from the source's memory, so L2's DR7 is a guess: {error}"
            )
        else:
            self._rewriter.memory = pages
            self.memory_read = len(pages)

    def _digest(self) -> None:
        """Of what was kept for it, because the guest stands still while the tail passes."""
        self._kept = 0
        for digest, parts in zip(self._digests, self._tail, strict=True):
            for part in parts:
                digest.update(part)
            parts.clear()

    def _edited(self, event: Event, at_hand: AtHand | None) -> Sequence[bytes | memoryview]:
        """What the rewriter makes of an event. When only observing, what it refuses is told and no more."""
        if self._rewriter is None:
            return ()
        try:
            pieces = self._rewriter.take(event, at_hand)
        except StreamError as error:
            if not self._as_is:
                raise
            self.warnings.append(f"The guest's state could not be converted: {error}")
            self._rewriter = None
            return ()
        if not self._as_is:
            self._edits = self._rewriter.edits
        return pieces

    def _unedited(self, event: Event) -> Sequence[bytes | memoryview]:
        """The event's own bytes; a package only as a whole, whose last byte is the commit point."""
        if isinstance(event, CommandReceived) and event.command is Command.PACKAGED:
            self._package = []
        if self._package is None:
            return (event.raw,)
        self._package.append(event.raw)
        if not isinstance(event, PackageEnd):
            return ()
        pieces, self._package = self._package, None
        return pieces

    def _note(self, event: Event) -> None:
        if isinstance(event, MachineConfiguration):
            self.machine = event.machine
        elif isinstance(event, CommandReceived) and event.command is Command.OPEN_RETURN_PATH:
            self.return_path = True
        elif isinstance(event, IterableStart) and not (self.return_path or self._policy.without_return_path):
            raise PolicyError(
                "the source asked for no return path, without which it would not wait for the destination's word: "
                "turn the migration capability return-path on, or allow migrations without it"
            )

    def _judge(self, section: CpuSection) -> None:
        """:raises PolicyError: this vCPU is a reason to stop"""
        if self._policy.enforcement is Enforcement.OFF:
            return
        verdict = judge_section(section, self._policy.facts)
        self.judged.append(Judged(section.index, verdict))
        self.missing.update(*(reason.lacked for reason in verdict.reasons))
        against = list(objections(verdict, self._policy))
        if not against:
            return
        reasons = " ".join(f"{reason.text} [{reason.code}]" for reason in against)
        text = f"vCPU {section.index}: the destination would not run this guest as it is here. {reasons}"
        if self._policy.enforcement is Enforcement.ENFORCE:
            raise PolicyError(text)
        self.warnings.append(text)

    def _early(self, vcpu: DeviceSection, told: CpuSection) -> Decision | None:
        """What becomes of a vCPU, where the verdict has to know: it came with native svm2 and goes without."""
        if self._as_is or self._rewriter is None or self._policy.enforcement is Enforcement.OFF:
            return None
        native = cpu.NESTED_STATE_SVM2.name in told.subsections
        return self._rewriter.decide(vcpu, told) if native and self._rewriter.target is not Carrier.NATIVE else None


def _arriving(section: CpuSection, decision: Decision) -> CpuSection:
    """The section as the destination's QEMU gets it instead of native svm2."""
    edit = decision.edit
    if edit is None:
        return section
    kept = {name: own for name, own in section.subsections.items() if name != cpu.NESTED_STATE_SVM2.name}
    return CpuSection(section.index, edit.block, kept | dict(edit.payloads), edit.means.legacy, vmx=False)


def _section_of_vcpu(event: Event) -> DeviceSection | None:
    return event if isinstance(event, DeviceSection) and event.idstr == cpu.IDSTR else None


def _vmcb_pa(section: CpuSection) -> int | None:
    """Where L2's VMCB12 stands in guest memory; None unless a kernel gave it as legacy state."""
    nested = section.nested
    if nested is None or nested.format != FORMAT_SVM or not nested.guest_mode:
        return None
    return nested.vmcb_pa
