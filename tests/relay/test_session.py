# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way that a migration can end: what happened, what is done, who may still run the guest."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import Any

import pytest

from qmpfilter.errors import BugError, DeadlineError, FramingError, HostError, PolicyError
from qmpfilter.relay.session import SHUT_FAILED, Action, Outcome, Phase, Session
from qmpfilter.wire.feed import NEED_DATA
from qmpfilter.wire.returnpath import Message, MessageType, ReturnPathParser

BREAK, TELL, SHUT, HALF_CLOSE, CLOSE = (
    Action.BREAK_DESTINATION, Action.TELL_DESTINATION, Action.SHUT_SOURCE, Action.END_DESTINATION,
    Action.CLOSE_SOURCE,
)  # fmt: skip
DAMAGED = FramingError(7, "a section", b"\xff")
RESET = ConnectionResetError(104, "Connection reset by peer")

Step = Callable[[Session], Any]


def says(kind: MessageType, value: int) -> Step:
    return methodcaller("returned", Message(0, b"", kind, value))


CONNECTED: Step = methodcaller("connected")
RETURN_PATH: Step = methodcaller("return_path_opened")
COMMITTED: Step = methodcaller("committed")
POSTCOPY: Step = methodcaller("committed", postcopy=True)
PONG, SHUT_0, SHUT_1 = says(MessageType.PONG, 1), says(MessageType.SHUT, 0), says(MessageType.SHUT, 1)
SOURCE_ENDS: Step = methodcaller("source_ended")
DESTINATION_ENDS: Step = methodcaller("destination_ended")
DESTINATION_BREAKS: Step = methodcaller("destination_ended", RESET)
DAMAGE: Step = methodcaller("stopped", DAMAGED)
GARBAGE: Step = methodcaller("return_path_unreadable", DAMAGED)
SILENCE: Step = methodcaller("unanswered", DeadlineError("nothing came for 3600 s"))
VETO: Step = methodcaller("stopped", PolicyError("its kernel refuses the state"), Outcome.VETOED)
STOP: Step = methodcaller("stopped", HostError("the operator stopped it"), Outcome.STOPPED)
VETO_IN_WORDS: Step = methodcaller("stopped", PolicyError("not its kernel"), Outcome.VETOED, between_sections=True)
DAMAGE_IN_WORDS: Step = methodcaller("stopped", DAMAGED, between_sections=True)

STREAMING = [CONNECTED, RETURN_PATH, PONG]
RUNNING_THERE = [*STREAMING, COMMITTED, SHUT_0]


@pytest.mark.parametrize(
    ("before", "last", "actions", "outcome"),
    [
        ([], SOURCE_ENDS, (BREAK,), Outcome.CANCELLED),
        (STREAMING, SOURCE_ENDS, (BREAK,), Outcome.CANCELLED),
        ([], DAMAGE, (BREAK, CLOSE), Outcome.FAILED),
        ([CONNECTED], DAMAGE, (BREAK, CLOSE), Outcome.FAILED),
        (STREAMING, DAMAGE, (BREAK, SHUT, CLOSE), Outcome.FAILED),
        (STREAMING, VETO, (BREAK, SHUT, CLOSE), Outcome.VETOED),
        ([], STOP, (BREAK, CLOSE), Outcome.STOPPED),
        (STREAMING, STOP, (BREAK, SHUT, CLOSE), Outcome.STOPPED),
        (STREAMING, VETO_IN_WORDS, (TELL, SHUT, CLOSE), Outcome.VETOED),
        (STREAMING, DAMAGE_IN_WORDS, (TELL, SHUT, CLOSE), Outcome.FAILED),
        ([*STREAMING, SHUT_1], VETO, (BREAK, CLOSE), Outcome.VETOED),
        (STREAMING, DESTINATION_ENDS, (SHUT, CLOSE), Outcome.REFUSED),
        (STREAMING, DESTINATION_BREAKS, (SHUT, CLOSE), Outcome.REFUSED),
        ([*STREAMING, SHUT_1], DESTINATION_ENDS, (CLOSE,), Outcome.REFUSED),
        ([CONNECTED], DESTINATION_ENDS, (CLOSE,), Outcome.REFUSED),
        ([*STREAMING, COMMITTED], DESTINATION_ENDS, (SHUT, CLOSE), Outcome.REFUSED),
        ([*STREAMING, COMMITTED, SHUT_1], DESTINATION_ENDS, (CLOSE,), Outcome.REFUSED),
        ([*STREAMING, COMMITTED], DESTINATION_BREAKS, (CLOSE,), Outcome.IN_DOUBT),
        ([*STREAMING, POSTCOPY], DESTINATION_ENDS, (CLOSE,), Outcome.IN_DOUBT),
        ([*STREAMING, POSTCOPY], DESTINATION_BREAKS, (CLOSE,), Outcome.IN_DOUBT),
        ([*STREAMING, POSTCOPY, SHUT_1], DESTINATION_ENDS, (CLOSE,), Outcome.REFUSED),
        ([*STREAMING, POSTCOPY, SHUT_0], DESTINATION_ENDS, (CLOSE,), Outcome.COMPLETED),
        ([*STREAMING, COMMITTED, GARBAGE], DESTINATION_ENDS, (CLOSE,), Outcome.IN_DOUBT),
        ([*STREAMING, COMMITTED, DAMAGE], DESTINATION_ENDS, (SHUT, CLOSE), Outcome.REFUSED),
        ([*STREAMING, COMMITTED], SILENCE, (BREAK, CLOSE), Outcome.IN_DOUBT),
        (RUNNING_THERE, SILENCE, (CLOSE,), Outcome.COMPLETED),
        (STREAMING, SILENCE, (BREAK, SHUT, CLOSE), Outcome.FAILED),
        (STREAMING, GARBAGE, (BREAK, SHUT, CLOSE), Outcome.FAILED),
        (RUNNING_THERE, DESTINATION_ENDS, (CLOSE,), Outcome.COMPLETED),
        (RUNNING_THERE, DESTINATION_BREAKS, (CLOSE,), Outcome.COMPLETED),
        ([*RUNNING_THERE, SOURCE_ENDS], DESTINATION_ENDS, (CLOSE,), Outcome.COMPLETED),
        ([CONNECTED, COMMITTED, SOURCE_ENDS], DESTINATION_ENDS, (CLOSE,), Outcome.SENT),
        ([CONNECTED, COMMITTED, SOURCE_ENDS], DESTINATION_BREAKS, (CLOSE,), Outcome.IN_DOUBT),
        ([CONNECTED, COMMITTED], DESTINATION_ENDS, (CLOSE,), Outcome.IN_DOUBT),
    ],
)
def test_endings(before: list[Step], last: Step, actions: tuple[Action, ...], outcome: Outcome) -> None:
    session = Session()
    for step in before:
        step(session)
    assert last(session) == actions
    assert (session.phase, session.outcome) == (Phase.ENDED, outcome)
    assert bool(session.reason) == (outcome is not Outcome.COMPLETED)


@pytest.mark.parametrize(
    ("before", "last", "actions", "outcome"),
    [
        (STREAMING, DESTINATION_ENDS, (SHUT, CLOSE), Outcome.REFUSED),
        ([*STREAMING, COMMITTED], DESTINATION_ENDS, (CLOSE,), Outcome.IN_DOUBT),
        ([*STREAMING, COMMITTED, SOURCE_ENDS], DESTINATION_ENDS, (CLOSE,), Outcome.IN_DOUBT),
        ([*STREAMING, COMMITTED], DESTINATION_BREAKS, (CLOSE,), Outcome.IN_DOUBT),
        ([*STREAMING, POSTCOPY], DESTINATION_ENDS, (CLOSE,), Outcome.IN_DOUBT),
        ([*STREAMING, COMMITTED, SHUT_1], DESTINATION_ENDS, (CLOSE,), Outcome.REFUSED),
        (RUNNING_THERE, DESTINATION_ENDS, (CLOSE,), Outcome.COMPLETED),
        ([CONNECTED, COMMITTED, SOURCE_ENDS], DESTINATION_ENDS, (CLOSE,), Outcome.SENT),
    ],
)
def test_endings_of_another_filter(
    before: list[Step], last: Step, actions: tuple[Action, ...], outcome: Outcome
) -> None:
    session = Session(paired=True)
    for step in before:
        step(session)
    assert last(session) == actions
    assert session.outcome is outcome


@pytest.mark.parametrize("late", [DAMAGE, VETO, DESTINATION_ENDS, DESTINATION_BREAKS])
def test_nothing_changes_an_outcome(late: Step) -> None:
    session = Session()
    for step in (*STREAMING, DAMAGE):
        step(session)
    assert late(session) == ()
    assert (session.outcome, session.reason) == (Outcome.FAILED, str(DAMAGED))


@pytest.mark.parametrize("late", [DAMAGE, VETO, VETO_IN_WORDS, GARBAGE])
def test_after_the_commit_point_nothing_of_ours_stops_it(late: Step) -> None:
    session = Session()
    for step in (*STREAMING, COMMITTED):
        step(session)
    assert late(session) == ()
    assert session.phase is Phase.COMMITTED
    assert len(session.late) == 1
    assert SHUT_0(session)
    assert session.destination_ended() == (CLOSE,)
    assert session.outcome is Outcome.COMPLETED


def test_nobody_runs_what_was_not_sent() -> None:
    session = Session()
    for step in STREAMING:
        step(session)
    with pytest.raises(FramingError):
        SHUT_0(session)


def test_one_shut_reaches_the_source() -> None:
    session = Session()
    session.connected()
    assert PONG(session)
    assert SHUT_1(session)
    assert not SHUT_0(session)
    assert not PONG(session)


def test_after_a_failure_the_destination_is_not_heard() -> None:
    session = Session()
    for step in (*STREAMING, DAMAGE):
        step(session)
    assert not SHUT_0(session)


def test_after_the_commit_point_the_source_may_half_close() -> None:
    session = Session()
    for step in (*STREAMING, COMMITTED):
        step(session)
    assert session.source_ended() == (HALF_CLOSE,)
    assert session.phase is Phase.COMMITTED


@pytest.mark.parametrize("steps", [[COMMITTED], [CONNECTED, CONNECTED], [*STREAMING, DAMAGE, COMMITTED]])
def test_illegal_moves_are_bugs(steps: list[Step]) -> None:
    session = Session()
    for step in steps[:-1]:
        step(session)
    with pytest.raises(BugError):
        steps[-1](session)


def test_shut_is_the_message_that_qemu_reads() -> None:
    parser = ReturnPathParser()
    parser.receive_data(SHUT_FAILED)
    message = parser.next_event()
    assert isinstance(message, Message)
    assert (message.type, message.value) == (MessageType.SHUT, 1)
    assert parser.next_event() is NEED_DATA
