# SPDX-License-Identifier: GPL-2.0-or-later
"""Records in a store that many write to, some of them damage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.cluster.board import Board
from qmpfilter.cluster.changes import By, Settings, pause_failing, promote, set_values, start
from qmpfilter.cluster.counts import Sum
from qmpfilter.cluster.host import Seen
from qmpfilter.cluster.rollout import Rollout, State, Thresholds
from qmpfilter.errors import HostError, PolicyError
from qmpfilter.filter.policy import Mode
from tests.helpers.cluster import ANNEX, BY, a_board, host, rollout, tally


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return a_board(tmp_path / "store")


def put(board: Board, key: str, data: bytes) -> None:
    board.store.put_always(key, data)


def begin(board: Board, **thresholds: int) -> None:
    limits = Thresholds(**{"least_migrations": 0, **thresholds})
    first = rollout({"one": Mode.OBSERVE, "two": Mode.OFF}, thresholds=limits)
    board.change(lambda current, counts: first)


def promoting(current: Rollout | None, counts: Sum) -> Rollout:
    assert current is not None
    return promote(current, "one", counts.whole, BY)


def pausing(current: Rollout | None, counts: Sum) -> Rollout | None:
    assert current is not None
    return pause_failing(current, counts, By("a host", BY.at))


def test_an_empty_store_is_a_cluster_without_anything(board: Board) -> None:
    assert board.rollout() is None
    assert board.switch() is None
    assert board.hosts() == ({}, ())
    assert board.counts() == Sum()
    assert board.tally("a") is None
    board.switch_on()


def test_hosts_are_listed_while_their_lease_lasts(board: Board) -> None:
    lease = board.store.lease(60)
    record = host("a", "one", *ANNEX)
    board.publish(record, lease)
    board.say_seen("a", Seen(3, True), lease)
    assert board.hosts() == ({"a": record}, ())
    assert board.seen() == {"a": Seen(3, True)}
    lease.end()
    assert board.hosts() == ({}, ())
    assert board.seen() == {}


def test_tallies_are_summed_and_said_twice_count_once(board: Board) -> None:
    for _ in range(2):
        board.say_tally("a", tally("one", Mode.ANNEX, migrations=2, failed=1))
        board.say_tally("b", tally("one", Mode.ANNEX, migrations=3))
    assert board.counts().whole == tally("one", Mode.ANNEX, migrations=5, failed=1).totals


def test_damaged_hosts_and_tallies_are_told_and_hide_nobody(board: Board) -> None:
    good = host("a", "one", *ANNEX)
    put(board, "hosts/a", good.to_json())
    put(board, "hosts/b", good.to_json())
    put(board, "hosts/c", good.to_json()[:50])
    put(board, "seen/a", b"")
    put(board, "tallies/a", tally("one", Mode.OFF, failed=1).to_json(with_sessions=False))
    put(board, "tallies/b", b"{}")
    listed, counts = board.hosts(), board.counts()
    assert list(listed.good) == ["a"]
    assert listed.damaged[0] == "hosts/b: the record of host 'a'"
    assert listed.damaged[1].startswith("hosts/c: a damaged record: no JSON")
    assert board.seen() == {}
    assert counts.readable == tally("one", Mode.OFF, failed=1).totals
    with pytest.raises(HostError, match="what the hosts counted cannot be told: tallies/b: version is missing"):
        assert counts.whole


@pytest.mark.parametrize("data", [b"", b"{}", b"\x00" * 100, b'{"version": 2}'])
def test_a_damaged_rollout_is_neither_followed_nor_overwritten(board: Board, data: bytes) -> None:
    put(board, "control/rollout", data)
    with pytest.raises(HostError, match="control/rollout"):
        board.rollout()
    with pytest.raises(HostError, match="control/rollout"):
        board.change(promoting)
    entry = board.store.get("control/rollout")
    assert entry is not None
    assert entry.data == data


@pytest.mark.parametrize("data", [b"", b"{}", b"\x00" * 100, b'{"version": 2}'])
def test_a_damaged_kill_switch_is_on(board: Board, data: bytes) -> None:
    put(board, "control/off", data)
    assert board.switch() is not None
    board.switch_on()
    assert board.switch() is None


def test_the_kill_switch_can_be_thrown_again_and_again(board: Board) -> None:
    for who in ("one", "two"):
        board.switch_off(By(who, BY.at))
        switch = board.switch()
        assert switch is not None
        assert switch.by == who
    board.switch_on()
    assert board.switch() is None


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What calls give that begin at the same moment; an exception as it is."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        gate.wait(20)
        try:
            return call()
        except PolicyError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_two_operators_who_promote_at_once_promote_once_each(board: Board) -> None:
    begin(board, least_migrations=1)
    board.say_tally("a", tally("one", Mode.OBSERVE, migrations=1))
    done, refused = sorted(
        together(*[partial(board.change, promoting)] * 2), key=lambda one: isinstance(one, Exception)
    )
    assert done.ring("one").stage is Mode.ANNEX
    assert "0 of 1 migrations are done" in str(refused)


def test_no_change_of_many_is_lost(board: Board) -> None:
    begin(board)

    def hold(number: int, current: Rollout | None, _: Sum) -> Rollout:
        assert current is not None
        return set_values(current, Settings(hosts={f"h{number}": Mode.OFF}), BY)

    together(*(partial(board.change, partial(hold, number)) for number in range(8)))
    whole = board.rollout()
    assert whole is not None
    assert sorted(whole.hosts) == [f"h{number}" for number in range(8)]
    assert whole.serial == 1 + 8


def test_two_hosts_pause_once(board: Board) -> None:
    begin(board)
    board.say_tally("a", tally("one", Mode.OBSERVE, failed=1))
    done = together(*[partial(board.change, pausing)] * 2)
    assert done.count(None) == 1
    whole = board.rollout()
    assert whole is not None
    assert len(whole.history) == 1


def test_who_promotes_while_a_failure_pauses_ends_with_a_paused_ring(board: Board) -> None:
    begin(board, most_failures=0)

    def failing() -> Rollout | None:
        board.say_tally("a", tally("one", Mode.OBSERVE, failed=1))
        return board.change(pausing)

    together(partial(board.change, promoting), failing)
    whole = board.rollout()
    assert whole is not None
    # Before or after the promotion: whichever came first, the failure is not forgotten.
    assert whole.ring("one").state is State.PAUSED


def test_a_promotion_that_was_begun_before_the_pause_does_not_undo_it(board: Board) -> None:
    begin(board)
    asked: list[State] = []

    def slowly(current: Rollout | None, counts: Sum) -> Rollout:
        assert current is not None
        asked.append(current.ring("one").state)
        if len(asked) == 1:
            board.say_tally("a", tally("one", Mode.OBSERVE, failed=1))
            board.change(pausing)
        return promoting(current, counts)

    with pytest.raises(PolicyError, match="it is paused"):
        board.change(slowly)
    assert asked == [State.RUNNING, State.PAUSED]


def test_two_operators_begin_at_once(board: Board) -> None:
    def beginning(current: Rollout | None, counts: Sum) -> Rollout:
        return start(current, ["one"], counts.whole, BY)

    outcomes = together(*[partial(board.change, beginning)] * 2)
    assert sorted(isinstance(one, PolicyError) for one in outcomes) == [False, True]
