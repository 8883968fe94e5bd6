# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may still run the guest: the states of one migration through a relay, and what each end's fate demands.

::

    WAITING -> STREAMING -> COMMITTED -> ENDED
                    └───────────────────────┘

The byte that ends the sections, or in postcopy the package, is the commit point. A destination that has not
seen it cannot start the guest, so before it every failure is answered by breaking the destination's connection
and, on the return path, SHUT(1): the source goes on. After it only the destination may speak: a source that hears no
SHUT goes on too, so to break anything then could make two guests of one. A QEMU that ends without SHUT has spoken:
it had not started the guest, and SHUT(1) is passed on for it. Another filter that does so has not: it may have been
killed when all was delivered.

Pure: told what happened, it says what to do. Source: measured with QEMU 7.2, 10.0 and 11.1, and QEMU 10.2.2
migration/migration.c (migration_completion, source_return_path_thread, process_incoming_migration_bh).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from qmpfilter.errors import BugError, FramingError, PolicyError, QmpfilterError, RefusedError, WithdrawnError
from qmpfilter.wire.framing import BE32, COMMAND_HEADER
from qmpfilter.wire.returnpath import Message, MessageType, ReturnPathEvent

__all__ = ["SENTENCES", "SHUT_FAILED", "STOPPED", "Action", "Outcome", "Phase", "Session", "outcome_of"]

SHUT_FAILED: Final = COMMAND_HEADER.pack(MessageType.SHUT, 4) + BE32.pack(1)
"""The message that makes a source go on with its guest."""

STOPPED: Final = "the operator stopped it"
"""The reason of a session that was ended by hand."""


class Phase(enum.Enum):
    """How far a migration is."""

    WAITING = "waiting"
    """The source has not connected."""
    STREAMING = "streaming"
    """The guest can only run at the source."""
    COMMITTED = "committed"
    """The destination may run the guest."""
    ENDED = "ended"
    """Nothing more will pass."""


_NEXT: Final[Mapping[Phase, tuple[Phase, ...]]] = {
    Phase.WAITING: (Phase.STREAMING, Phase.ENDED),
    Phase.STREAMING: (Phase.COMMITTED, Phase.ENDED),
    Phase.COMMITTED: (Phase.ENDED,),
    Phase.ENDED: (),
}


class Outcome(enum.Enum):
    """How a migration ended, as far as its connections tell; every session has exactly one."""

    COMPLETED = "completed"
    """The destination said that it runs the guest."""
    SENT = "sent"
    """All was delivered; without a return path nobody says how it went on."""
    REFUSED = "refused"
    """The destination said that it failed, or went away: the source goes on."""
    VETOED = "vetoed"
    """Stopped before the commit point because of what it would have done to the guest."""
    FAILED = "failed"
    """Stopped before the commit point because of the stream, the network or the relay."""
    STOPPED = "stopped"
    """Ended before the commit point because somebody asked for it here."""
    CANCELLED = "cancelled"
    """The source ended it."""
    IN_DOUBT = "in doubt"
    """Cut, ended by another filter, or without an answer for too long, after the commit point and before the
    destination's word: ask both QEMUs."""


SENTENCES: Final[Mapping[Outcome, str]] = {
    Outcome.COMPLETED: "the destination runs the guest",
    Outcome.SENT: "all was delivered; without a return path nobody says what became of it",
    Outcome.REFUSED: "the destination did not take the guest, which goes on at the source",
    Outcome.VETOED: "stopped before the destination could start the guest, which goes on at the source",
    Outcome.FAILED: "failed before the destination could start the guest, which goes on at the source",
    Outcome.STOPPED: "ended by hand before the destination could start the guest, which goes on at the source",
    Outcome.CANCELLED: "the source ended the migration and keeps the guest",
    Outcome.IN_DOUBT: "cut after the destination could have started the guest: ask both QEMUs who runs it",
}
"""What an outcome means."""


def outcome_of(cause: Exception) -> Outcome:
    """VETOED where an error speaks of what the migration would do to the guest, FAILED where of anything else."""
    return Outcome.VETOED if isinstance(cause, (PolicyError, RefusedError, WithdrawnError)) else Outcome.FAILED


class Action(enum.Enum):
    """What the relay has to do, in this order."""

    BREAK_DESTINATION = "break the connections to the destination"
    TELL_DESTINATION = "withdraw the stream in words, and half-close the connection to the destination"
    SHUT_SOURCE = "send SHUT(1) on the return path"
    END_DESTINATION = "half-close the connection to the destination"
    CLOSE_SOURCE = "close the connections to the source"


class Session:
    """The state of one migration. Methods tell what happened and return what to do.

    :param paired: the destination's connections lead to another filter
    :ivar phase: how far it is
    :ivar outcome: None until it has ended
    :ivar reason: of any other outcome than COMPLETED, one sentence
    :ivar late: what would have stopped the migration, had it not come after the commit point
    """

    def __init__(self, *, paired: bool = False) -> None:
        self.phase = Phase.WAITING
        self.outcome: Outcome | None = None
        self.reason = ""
        self.return_path = False
        self.late: list[str] = []
        self._paired = paired
        self._postcopy = False
        self._unread = False
        self._shut: int | None = None
        self._source_ended = False

    def __repr__(self) -> str:
        return f"<Session {self.phase.value}{f', {self.outcome.value}' if self.outcome else ''}>"

    @property
    def answered(self) -> bool:
        """The destination has said whether it runs the guest."""
        return self._shut is not None

    def connected(self) -> None:
        """The source's main channel is there, and the destination's."""
        self._move(Phase.STREAMING)

    def return_path_opened(self) -> None:
        """The source asked for a return path: it now waits for SHUT."""
        self.return_path = True

    def committed(self, *, postcopy: bool = False) -> None:
        """The commit point is about to be sent to the destination.

        :param postcopy: the destination then starts the guest, long before it says SHUT
        """
        self._postcopy = postcopy
        self._move(Phase.COMMITTED)

    def returned(self, message: ReturnPathEvent) -> bool:
        """A message came from the destination. True if it is to be passed on to the source.

        :raises StreamError: it says to have got what was not sent yet
        """
        if self.phase is Phase.ENDED or self._shut is not None:
            return False
        if isinstance(message, Message) and message.type is MessageType.SHUT:
            value = message.value or 0
            if value == 0 and self.phase is not Phase.COMMITTED:
                raise FramingError(message.offset, "SHUT(0) only after the guest's whole state", "SHUT(0)")
            self._shut = value
        return True

    def return_path_unreadable(self, cause: QmpfilterError) -> tuple[Action, ...]:
        """What the destination said cannot be understood; after the commit point it is passed on all the same."""
        self._unread = True
        return self.stopped(cause)

    def source_ended(self) -> tuple[Action, ...]:
        """The source closed its side and everything it sent was delivered."""
        self._source_ended = True
        if self.phase in (Phase.WAITING, Phase.STREAMING):
            return self._end(Outcome.CANCELLED, "the source ended the migration", Action.BREAK_DESTINATION)
        return (Action.END_DESTINATION,)

    def destination_ended(self, error: OSError | None = None) -> tuple[Action, ...]:
        """The destination closed its side, or its connection broke; all it had sent was passed on."""
        if self.phase is Phase.ENDED:
            return ()
        if self._shut == 0:
            return self._end(Outcome.COMPLETED, "", Action.CLOSE_SOURCE)
        if self._shut is not None:
            return self._end(Outcome.REFUSED, f"the destination failed (SHUT {self._shut})", Action.CLOSE_SOURCE)
        cause = f" ({error.strerror or error})" if error else ""
        if self.phase is Phase.COMMITTED and self._postcopy:
            reason = f"the connection ended in postcopy{cause}: recover the migration, or ask both QEMUs"
            return self._end(Outcome.IN_DOUBT, reason, Action.CLOSE_SOURCE)
        if self.phase is Phase.COMMITTED:
            if self.return_path and error is None and not self._unread:
                if self._paired:
                    reason = "the other filter ended without passing on the destination's answer"
                    return self._end(Outcome.IN_DOUBT, reason, Action.CLOSE_SOURCE)
                # A source takes an end without SHUT for a failure and goes on, but a filter before this one could
                # not tell it from an accident; a destination that had started the guest would have said so.
                reason = "the destination ended without a word"
                return self._end(Outcome.REFUSED, reason, Action.SHUT_SOURCE, Action.CLOSE_SOURCE)
            if self._source_ended and error is None:
                return self._end(Outcome.SENT, "without a return path nobody tells more", Action.CLOSE_SOURCE)
            return self._end(Outcome.IN_DOUBT, f"the destination ended{cause}", Action.CLOSE_SOURCE)
        shut = (Action.SHUT_SOURCE,) if self.return_path else ()
        return self._end(Outcome.REFUSED, f"the destination ended the migration{cause}", *shut, Action.CLOSE_SOURCE)

    def stopped(
        self, cause: QmpfilterError | OSError, outcome: Outcome = Outcome.FAILED, *, between_sections: bool = False
    ) -> tuple[Action, ...]:
        """The relay itself has a reason to stop: a veto, a damaged stream, a deadline, the operator's wish. After the
        commit point there is none that weighs enough.

        :param outcome: VETOED, FAILED or STOPPED
        :param between_sections: the destination waits for a section, and can be told in one
        """
        if self.phase is Phase.ENDED:
            return ()
        if self.phase is Phase.COMMITTED:
            self.late.append(str(cause))
            return ()
        shut = (Action.SHUT_SOURCE,) if self.return_path and self._shut is None else ()
        part = Action.TELL_DESTINATION if between_sections else Action.BREAK_DESTINATION
        return self._end(outcome, str(cause), part, *shut, Action.CLOSE_SOURCE)

    def unanswered(self, cause: QmpfilterError) -> tuple[Action, ...]:
        """The destination has not said a word for as long as anybody is to wait."""
        if self.phase is not Phase.COMMITTED:
            return self.stopped(cause)
        if self._shut is not None:
            return self.destination_ended()
        return self._end(Outcome.IN_DOUBT, str(cause), Action.BREAK_DESTINATION, Action.CLOSE_SOURCE)

    def _end(self, outcome: Outcome, reason: str, *actions: Action) -> tuple[Action, ...]:
        self._move(Phase.ENDED)
        self.outcome, self.reason = outcome, reason
        return actions

    def _move(self, phase: Phase) -> None:
        if phase not in _NEXT[self.phase]:
            raise BugError(f"session: {self.phase.value} -> {phase.value}")
        self.phase = phase
