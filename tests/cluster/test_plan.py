# SPDX-License-Identifier: GPL-2.0-or-later
"""What a plan says, against deciding every pair."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

from qmpfilter.cluster.changes import start
from qmpfilter.cluster.decide import Situation, decide
from qmpfilter.cluster.plan import plan, without_ring
from qmpfilter.cluster.rollout import Canaries, Ring, Rollout, State, Thresholds
from qmpfilter.filter.policy import Mode
from tests.helpers.cluster import ANNEX, BY, DOMAIN, NATIVE, host, rollout

HOSTS = (
    host("a", "one", *ANNEX),
    host("b", "one", *NATIVE),
    host("c", "two", *NATIVE),
    host("d", "two", *NATIVE),
    host("e", "two", *NATIVE, kernel=None),
    host("f", "two", *ANNEX, ailing="no SVM"),
    host("g", "elsewhere", *NATIVE),
)


def test_every_pair_is_counted_as_it_would_be_decided() -> None:
    whole = start(None, ["one", "two"], {}, BY)
    at = {ring.name: ring.stage for ring in whole.rings}
    moves = list(plan(whole, HOSTS))
    for move in moves:
        at[move.ring] = move.stage
        current = rollout(at)
        modes = Counter(decide(Situation(current, *pair)).mode for pair in permutations(HOSTS, 2))
        assert move.pairs == modes
    assert [(move.ring, move.stage) for move in moves] == [
        ("two", Mode.OBSERVE),
        ("one", Mode.ANNEX),
        ("two", Mode.ANNEX),
        ("one", Mode.NATIVE),
        ("two", Mode.NATIVE),
    ]


def test_who_is_held_back_is_told_with_the_reason() -> None:
    whole = rollout({"one": Mode.ANNEX, "two": Mode.OBSERVE}, thresholds=Thresholds(5), hosts={"d": Mode.OBSERVE})
    move = next(plan(whole, HOSTS))
    assert (move.ring, move.stage, move.needed) == ("two", Mode.ANNEX, 5)
    why = {held.why: held.pairs for held in move.held}
    assert sum(why.values()) == sum(move.pairs.values()) - move.pairs[Mode.ANNEX]
    assert "of e it is not known which kernel it has" in why
    assert "f is not healthy: no SVM" in why
    assert "host d is held at observe" in why
    assert without_ring(whole, HOSTS) == ["g"]


def test_canaries_pauses_and_single_domains_are_looked_past() -> None:
    ring = Ring("one", Mode.OBSERVE, State.PAUSED, canaries=Canaries(3))
    move = next(plan(Rollout(1, (ring,), domains={DOMAIN: Mode.OFF}), HOSTS[:2]))
    assert move.pairs == {Mode.ANNEX: 2}


def test_ten_thousand_hosts() -> None:
    many = [host(f"h{number}", "one", *(NATIVE if number % 2 else ANNEX), ailing="ill" * (number % 7 == 0))
            for number in range(10_000)]  # fmt: skip
    moves = list(plan(rollout({"one": Mode.OBSERVE}), many))
    assert [sum(move.pairs.values()) for move in moves] == [10_000 * 9_999] * 2


def test_nobody_is_there() -> None:
    assert [move.pairs for move in plan(rollout({"one": Mode.ANNEX}), [])] == [{}]
