# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream's events in, the edited stream's bytes out, as soon as they are decided.

::

    rewriter = Rewriter(Carrier.ANNEX)
    while (event := parser.next_event()) is not NEED_DATA:
        for piece in rewriter.take(event):
            ...                            # write it before the parser is fed again

    SECTIONS -> HELD -> DONE               precopy: EOF is held until vmdesc proved every edit
        └-> PACKAGE -> POSTCOPY -> DONE    postcopy: the package is held until all of it is edited

EOF, or the package that holds COMMAND RUN, is the commit point: no destination lets the guest run on what comes
before. It passes when every section was read, every edit was read again, and vmdesc, where there is one, agrees
with all of them. Any error comes before it, and is final.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Final, NamedTuple

from qmpfilter.errors import BugError, LimitError, RecordError, RefusedError, UnsupportedError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.description import described
from qmpfilter.filter.edit import edited
from qmpfilter.filter.vcpu import Decision, Outcome, decide
from qmpfilter.svm.findings import Finding
from qmpfilter.svm.provenance import FieldFinding
from qmpfilter.svm.section import CpuSection
from qmpfilter.svm.svm2 import Svm2State
from qmpfilter.value_class import value_class
from qmpfilter.wire import cpu
from qmpfilter.wire.events import (
    CommandReceived,
    DeviceSection,
    Event,
    PackageEnd,
    SectionsEnd,
    SectionsHeld,
    VmDescriptionReceived,
)
from qmpfilter.wire.framing import BE32, COMMAND_HEADER, Command, SectionType
from qmpfilter.wire.sections import without_raw

__all__ = ["AtHand", "Rewriter", "State", "VcpuReport"]

_MAX_PACKAGE: Final = 0xFFFF_FFFF


class State(enum.Enum):
    """What the rewriter waits for."""

    SECTIONS = enum.auto()
    HELD = enum.auto()
    PACKAGE = enum.auto()
    POSTCOPY = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()  # an error was raised


_NEXT: Final[Mapping[State, tuple[State, ...]]] = {
    State.SECTIONS: (State.HELD, State.PACKAGE),
    State.HELD: (State.DONE,),
    State.PACKAGE: (State.POSTCOPY,),
    State.POSTCOPY: (State.DONE,),
    State.DONE: (),
}


class AtHand(NamedTuple):
    """What was worked out of a vCPU's section already.

    :param told: the section
    :param decision: what becomes of it, where that was asked
    """

    told: CpuSection
    decision: Decision | None = None


@value_class
class VcpuReport:
    """What became of one vCPU.

    :param offset: of its section in the original stream
    :param found: what carried its nested state there; None where there was nothing to convert
    :param fields: how exact each field of the new state is
    :param findings: what is legal but lost or doubtful
    :param section: the edited section; None where it passes as it is
    :param state: what it then carries of svm2
    """

    index: int
    offset: int
    outcome: Outcome
    found: Carrier | None
    fields: tuple[FieldFinding, ...]
    findings: tuple[Finding, ...]
    section: DeviceSection | None = field(repr=False)
    state: Svm2State | None = field(repr=False)


class Rewriter:
    """Edits one stream.

    :param target: what is to carry the nested state of every vCPU that is in L2
    :ivar target: the same
    :ivar memory: pages of guest memory by address, where the source was asked for them
    :ivar vcpus: what became of the vCPUs so far, in the stream's order
    """

    def __init__(self, target: Carrier) -> None:
        self.vcpus: list[VcpuReport] = []
        self.target = target
        self.memory: Mapping[int, bytes] = {}
        self._state = State.SECTIONS
        self._error: Exception | None = None
        self._held: list[bytes] = []
        self._edits = 0
        # Those that are divided differently now.
        self._edited: list[DeviceSection] = []

    def __repr__(self) -> str:
        return f"<Rewriter to {self.target} {self.state.name}, {len(self.vcpus)} vCPUs>"

    @property
    def state(self) -> State:
        """What the rewriter waits for."""
        return self._state if self._error is None else State.FAILED

    @property
    def edits(self) -> int:
        """How many sections were edited so far."""
        return self._edits

    def take(self, event: Event, at_hand: AtHand | None = None) -> Sequence[bytes | memoryview]:
        """Take the next event. An error is final: every later call raises it again.

        :param at_hand: of a vCPU's section
        :returns: the bytes that may go now, in order; a view is valid as long as the event's `raw` is
        :raises RefusedError: nested state that no conversion touches; the text names the vCPU
        :raises RecordError: a damaged svm2 record; the text names the vCPU
        :raises UnsupportedError: a vCPU, or a vmdesc, of a shape that cannot be edited for certain
        :raises LimitError: a package that has become too long
        :raises BugError: an edit went wrong, or the events are not those of one whole stream
        """
        if self._error is not None:
            raise self._error
        try:
            return self._take(event, at_hand)
        except Exception as error:
            self._error = error
            raise

    def decide(self, section: DeviceSection, told: CpuSection) -> Decision:
        """What becomes of a vCPU's section.

        :raises RefusedError: nested state that no conversion touches; the text names the vCPU
        :raises RecordError: a damaged svm2 record; the text names the vCPU
        """
        try:
            return decide(told, self.target, self.memory)
        except RefusedError as error:
            raise RefusedError(_place(section), _of_vcpu(section, error), error.reasons) from error
        except RecordError as error:
            raise RecordError(_place(section), _of_vcpu(section, error), error.found) from error

    def finish(self) -> None:
        """The parser has told all events of a whole stream.

        :raises BugError: something was left undecided
        """
        if self.state is not State.DONE:
            raise BugError(f"{self!r} at the end of the stream")

    def _move(self, state: State) -> None:
        if state not in _NEXT.get(self._state, ()):
            raise BugError(f"rewriter: {self._state.name} -> {state.name}")
        self._state = state

    def _take(self, event: Event, at_hand: AtHand | None) -> Sequence[bytes | memoryview]:
        match event:
            case CommandReceived(command=Command.PACKAGED):
                self._move(State.PACKAGE)
                return ()
            case PackageEnd():
                return self._package(event)
            case SectionsEnd() if self._state is State.POSTCOPY:
                self._move(State.DONE)
                return (event.raw,)
            case SectionsEnd():
                self._move(State.HELD)
                self._held.append(event.raw)
                return ()
            case VmDescriptionReceived():
                return self._description(event)
            case SectionsHeld():
                return ()
        if self._state in (State.HELD, State.DONE):
            raise BugError(f"{type(event).__name__} while the rewriter is in {self._state.name}")
        raw = self._section(event, at_hand) if isinstance(event, DeviceSection) else event.raw
        if self._state is State.PACKAGE:
            self._held.append(bytes(raw))
            return ()
        return (raw,)

    def _package(self, event: PackageEnd) -> Sequence[bytes]:
        self._move(State.POSTCOPY)
        size = sum(map(len, self._held))
        if size > _MAX_PACKAGE:
            raise LimitError(event.offset, f"a package of at most {_MAX_PACKAGE} bytes", str(size))
        command = bytes([SectionType.COMMAND]) + COMMAND_HEADER.pack(Command.PACKAGED, BE32.size) + BE32.pack(size)
        pieces, self._held = [command, *self._held], []
        return pieces

    def _description(self, event: VmDescriptionReceived) -> Sequence[bytes]:
        self._move(State.DONE)
        head = len(event.raw) - len(event.vmdesc.text)
        text = described(event.vmdesc, self._edited, event.offset + head)
        return b"".join((*self._held, event.raw[:1], BE32.pack(len(text)))), text

    def _section(self, section: DeviceSection, at_hand: AtHand | None) -> bytes:
        """The bytes of a section, edited if it is a vCPU's and needs it."""
        if section.idstr != cpu.IDSTR:
            return section.raw
        if section.version_id != cpu.VERSION:
            expected = f"version {cpu.VERSION} of section {section.idstr!r} {section.instance_id}"
            raise UnsupportedError(section.offset, expected, f"version {section.version_id}")
        told, decision = at_hand or AtHand(CpuSection.of(section))
        if decision is None:
            decision = self.decide(section, told)
        result = None if decision.edit is None else edited(section, decision.edit)
        self.vcpus.append(
            VcpuReport(
                section.instance_id,
                section.offset,
                decision.outcome,
                decision.found,
                decision.fields,
                decision.findings,
                result,
                decision.state,
            )
        )
        if result is None:
            return section.raw
        self._edits += 1
        if result.subsections is not section.subsections:
            self._edited.append(without_raw(result))
        return result.raw


def _place(section: DeviceSection) -> int:
    """Where a vCPU's nested state stands, or its section if it has none."""
    nested = section.subsection(cpu.NESTED_STATE.name)
    return section.offset + (nested.start if nested is not None else 0)


def _of_vcpu(section: DeviceSection, error: RefusedError | RecordError) -> str:
    return f"vCPU {section.instance_id} to have {error.expected}"
