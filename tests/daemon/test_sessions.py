# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a session is, and how it ended, from what its worker said."""

from __future__ import annotations

from typing import Any

import pytest

from qmpfilter.daemon.sessions import Origin, Session, Stage, read_journal
from qmpfilter.errors import BugError
from qmpfilter.relay.session import Outcome

ORIGIN = Origin("20260101T000000-01234567", 12, 34, "2026-01-01", "tcp::1", "unix:/a", "annex", "enforce", "me")
KILLED = "was killed by SIGKILL"


def phase(name: str, **more: Any) -> dict[str, Any]:
    return {"phase": name, "at": f"at {name}", **more}


def test_it_never_goes_back() -> None:
    session = Session(ORIGIN)
    for name, stage in (
        ("waiting", Stage.WAITING),
        ("committed", Stage.COMMITTED),
        ("streaming", Stage.COMMITTED),
        ("ended", Stage.COMMITTED),
        ("of a newer version", Stage.COMMITTED),
    ):
        session.hear(phase(name, outcome="completed"))
        assert session.stage is stage
    assert list(session.moments) == ["waiting", "committed", "streaming", "ended"]


@pytest.mark.parametrize(
    ("told", "report", "outcome", "reason"),
    [
        ([], None, Outcome.FAILED, "the worker was killed by SIGKILL before the commit point"),
        (["waiting"], None, Outcome.FAILED, "before the commit point: the guest goes on at the source"),
        (["waiting", "streaming"], None, Outcome.FAILED, "before the commit point"),
        (["waiting", "streaming", "committed"], None, Outcome.IN_DOUBT, "after the commit point"),
        (["waiting", "committed"], {"outcome": "completed", "reason": ""}, Outcome.COMPLETED, ""),
        (["waiting"], {"outcome": "vetoed", "reason": "because"}, Outcome.VETOED, "because"),
        (["waiting", "committed"], {"outcome": "something new"}, Outcome.IN_DOUBT, "after the commit point"),
        (["waiting", "committed"], {"outcome": None}, Outcome.IN_DOUBT, "after the commit point"),
    ],
)
def test_the_ending(told: list[str], report: dict[str, Any] | None, outcome: Outcome, reason: str) -> None:
    session = Session(ORIGIN)
    for name in told:
        session.hear(phase(name))
    ending = session.end(report, KILLED)
    assert ending.outcome is outcome
    assert reason in ending.reason
    assert bool(ending.reason) is bool(reason)
    last = session.last_report()
    assert (last["session"], last["outcome"], last["reason"]) == (ORIGIN.session, outcome.value, ending.reason)


def test_a_worker_that_could_not_write_its_report() -> None:
    session = Session(ORIGIN)
    for name in ("waiting", "committed"):
        session.hear(phase(name))
    session.hear(phase("ended", outcome="completed", reason=""))
    assert session.end(None, "ended with status 0 without a report").outcome is Outcome.COMPLETED


def test_it_ends_once() -> None:
    session = Session(ORIGIN)
    session.end(None, KILLED)
    with pytest.raises(BugError, match="ended twice"):
        session.end(None, KILLED)


def test_the_journal() -> None:
    cut = '{"phase": "comm'
    origin, events = read_journal([ORIGIN.to_json(), '{"phase": "waiting"}', "[]", cut])
    assert (origin, events) == (ORIGIN, [{"phase": "waiting"}])
    for lines in ([], [""], ["{}"], ['{"session": "x"}'], ["[]"], [ORIGIN.to_json()[:-5]]):
        assert read_journal(lines) == (None, [])
