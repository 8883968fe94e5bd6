# SPDX-License-Identifier: GPL-2.0-or-later
"""Members of a cluster in this process, with their threads, and the store that they share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.cluster.board import Board
from qmpfilter.cluster.counts import Counts, Sum, Tally
from qmpfilter.cluster.directory import DirectoryStore
from qmpfilter.cluster.rollout import State, Thresholds
from qmpfilter.daemon.config import Cluster
from qmpfilter.daemon.known import Known, KnownFile
from qmpfilter.daemon.member import Member
from qmpfilter.daemon.switch import KillSwitch
from qmpfilter.filter.policy import Mode
from tests.helpers.cluster import ANNEX, BY, a_board, facts, rollout, tally

SECONDS = 30.0
RING = "canary"


class Counting(Board):
    """Tells how often all tallies were read."""

    sums = 0

    def counts(self) -> Sum:
        self.sums += 1
        return super().counts()


class Hosts:
    """Starts members."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.board = a_board(directory / "store")
        self._directory = directory
        self._stack = stack
        (directory / "facts.json").write_text(json.dumps(facts(*ANNEX).to_json()))

    def start(self, name: str, place: str, switch: str = "off") -> tuple[Member, Counting]:
        """One that calls itself so, and keeps what it has at a place of its own."""
        settings = Cluster(store="dir:", name=name, ring=RING, facts=self._directory / "facts.json", lease=3.0)
        board = Counting(DirectoryStore(self._directory / "store", SECONDS))
        own = self._directory / place
        member = Member(settings, board, own, KillSwitch(own / switch))
        self._stack.enter_context(closing(member))
        member.start()
        return member, board

    def counts(self) -> Counts:
        return self.board.counts().whole.get(RING, {}).get(Mode.ANNEX, Counts())

    def ailing(self) -> str:
        return "".join(host.ailing for host in self.board.hosts().good.values())


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(tmp_path, stack)


def until(condition: Callable[[], bool], what: str) -> None:
    late = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < late, f"{what} never came"
        time.sleep(0.02)


def report(session: str, outcome: str = "completed") -> dict[str, Any]:
    return {"session": session, "outcome": outcome, "mode": "annex"}


def test_two_of_one_name_are_ailing_and_lose_no_count(hosts: Hosts, tmp_path: Path) -> None:
    one, _ = hosts.start("a", "one")
    one.count(report("1"), "b")
    until(lambda: hosts.counts().migrations == 1, "the first count")
    with ExitStack() as stack:
        two, _ = Hosts(tmp_path, stack).start("a", "two")
        two.count(report("2"), "b")
        until(lambda: all("is named a, too" in one.as_json()["ailing"] for one in (one, two)), "both to say so")
        until(lambda: "is named a, too" in hosts.ailing(), "the cluster to be told")
        one.count(report("3"), "b")
        # What the one said may have been written over before the two saw each other.
        hosts.board.say_tally("a", tally(RING, Mode.ANNEX, migrations=7))
        until((tmp_path / "two/tally.json").exists, "the second to keep what it counted")
    two, _ = hosts.start("b", "two")
    until(lambda: hosts.counts().migrations == 3, "the counts of both")
    until(lambda: not one.as_json()["ailing"], "the first to recover")
    until(lambda: not hosts.ailing() and set(hosts.board.hosts().good) == {"a", "b"}, "both to be listed")


def test_two_of_one_name_pause_a_ring_all_the_same(hosts: Hosts) -> None:
    hosts.board.change(lambda *_: rollout({RING: Mode.ANNEX}, thresholds=Thresholds(0, most_failures=5)))
    members = [hosts.start("a", place)[0] for place in ("one", "two")]
    until(lambda: all(one.as_json()["ailing"] for one in members), "both to say so")
    members[1].count(report("1", "failed"), "b")
    until(lambda: ring_state(hosts) is State.PAUSED, "the ring to be paused")
    assert hosts.counts().failed == 0


def ring_state(hosts: Hosts) -> State:
    whole = hosts.board.rollout()
    assert whole is not None
    return whole.ring(RING).state


def test_only_failures_have_all_tallies_read_at_once(hosts: Hosts) -> None:
    hosts.board.change(lambda *_: rollout({RING: Mode.ANNEX}, thresholds=Thresholds(0, most_failures=1)))
    member, board = hosts.start("a", "one")

    def said(**counts: int) -> Callable[[], bool]:
        return lambda: hosts.counts() == Counts(**counts)

    until(lambda: hosts.board.tally("a") == Tally() and board.sums == 1, "the first look")
    for session in (1, 2, 3):
        member.count(report(str(session)), "b")
        until(said(migrations=session), "the count")
    for session in (1, 2):
        assert ring_state(hosts) is State.RUNNING
        member.count(report(f"failed {session}", "failed"), "b")
        until(said(migrations=3, failed=session), "the count")
    until(lambda: ring_state(hosts) is State.PAUSED, "the ring to be paused")
    assert board.sums == 3


def test_a_host_that_cannot_be_switched_off_does_not_say_that_it_is(hosts: Hosts, tmp_path: Path) -> None:
    hosts.board.switch_off(BY)
    member, _ = hosts.start("a", "one", switch="gone/off")
    until(lambda: "a" in hosts.board.seen(), "what the host has seen")
    assert not hosts.board.seen()["a"].off
    until(lambda: "kill switch cannot be turned on here" in hosts.ailing(), "the cluster to be told")
    (tmp_path / "one/gone").mkdir()
    until(lambda: hosts.board.seen()["a"].off, "the host to say that it is off")
    until(lambda: not member.as_json()["ailing"], "it to be well")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, False), (100.0, True), (1000.0, False)],
    ids=["nothing is known", "what is known is fresh", "what is known is old"],
)
def test_while_the_store_is_away_only_what_is_known_goes_on(
    hosts: Hosts, tmp_path: Path, caplog: pytest.LogCaptureFixture, seconds: float | None, said: bool
) -> None:
    (tmp_path / "store").rename(tmp_path / "gone")
    (tmp_path / "one").mkdir()
    if seconds is not None:
        file = KnownFile(tmp_path / "one/known.json")
        file.write(Known())
        file.heard(seconds)
    member, _ = hosts.start("a", "one")
    until(lambda: bool(member.as_json()["away"]), "the store to be missed")
    assert "no store is there" in caplog.text
    assert ("; what was known goes on for " in caplog.text) == said
    assert "goes on for 600 s" not in caplog.text


def test_what_was_switched_off_stays_so_until_the_store_is_heard(hosts: Hosts, tmp_path: Path) -> None:
    """Nothing is remembered, and the store is away."""
    store, gone, file = tmp_path / "store", tmp_path / "gone", tmp_path / "one/off"
    file.parent.mkdir()
    KillSwitch(file).follow(True)
    store.rename(gone)
    member, _ = hosts.start("a", "one")
    until(lambda: bool(member.as_json()["away"]), "the store to be missed")
    assert file.exists()
    assert "was not reached" in member.off_for_all
    gone.rename(store)
    until(lambda: not file.exists(), "the switch to follow")
    assert member.off_for_all == ""
