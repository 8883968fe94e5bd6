# SPDX-License-Identifier: GPL-2.0-or-later
"""What may be done to a rollout, and what stands against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qmpfilter.cluster.changes import (
    Settings,
    abort,
    obstacles,
    pause,
    pause_failing,
    promote,
    resume,
    set_values,
    start,
    too_many,
)
from qmpfilter.cluster.counts import Counts, Sum, Tally, Totals, counted, summed
from qmpfilter.cluster.rollout import STAGES, Canaries, Ring, Rollout, State, Thresholds
from qmpfilter.errors import HostError, PolicyError
from qmpfilter.filter.policy import Mode
from qmpfilter.relay.session import Outcome
from tests.helpers.cluster import BY, DOMAIN, rollout

NOTHING: Totals = {}
TWO = rollout({"one": Mode.OBSERVE, "two": Mode.OBSERVE}, thresholds=Thresholds(3, 1, 1))


def seen(mode: Mode = Mode.OBSERVE, ring: str = "one", **counts: int) -> Totals:
    return {ring: {mode: Counts(**counts)}}


def test_the_first_ring_begins_to_observe() -> None:
    begun = start(None, ["one", "two"], NOTHING, BY)
    assert [(ring.name, ring.stage, ring.state) for ring in begun.rings] == [
        ("one", Mode.OBSERVE, State.RUNNING),
        ("two", Mode.OFF, State.RUNNING),
    ]
    assert begun.history[-1].what == "start with rings one, two"


@pytest.mark.parametrize("rings", [[], ["a", "a"], [""], ["a b"], ["a,b"], ["\x1b[2J"], ["x" * 65]])
def test_rings_that_cannot_be(rings: list[str]) -> None:
    with pytest.raises(PolicyError):
        start(None, rings, NOTHING, BY)


def test_a_rollout_is_begun_again_only_when_all_of_it_is_aborted() -> None:
    half = abort(TWO, ["one"], "", BY)
    with pytest.raises(PolicyError, match="has begun already"):
        start(half, ["one"], NOTHING, BY)
    again = start(abort(half, [], "", BY), ["three"], NOTHING, BY)
    assert again.serial == TWO.serial + 3
    assert [change.what.split()[0] for change in again.history] == ["abort", "abort", "start"]


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        (NOTHING, "0 of 3 migrations are done at this stage"),
        (seen(migrations=2), "2 of 3 migrations are done"),
        (seen(Mode.OFF, migrations=9), "0 of 3 migrations are done at this stage"),
        (seen(migrations=9, failed=1, in_doubt=1), "failed or in doubt: 2, allowed: 1"),
        (seen(migrations=9, vetoed=2), "vetoed: 2, allowed: 1"),
    ],
)
def test_what_a_ring_saw_stands_against_its_next_stage(totals: Totals, said: str) -> None:
    with pytest.raises(PolicyError, match=f"ring one stays at observe: {said}"):
        promote(TWO, "one", totals, BY)


def test_enough_migrations_let_it_go_on() -> None:
    totals = seen(migrations=3, failed=1, vetoed=1)
    further = promote(TWO, "one", totals, BY)
    assert further.ring("one").stage is Mode.ANNEX
    # What was counted for the stage before does not count for this one.
    assert list(obstacles(further, further.ring("one"), totals)) == ["0 of 3 migrations are done at this stage"]


@pytest.mark.parametrize(
    "ring",
    [
        Ring("one", Mode.OBSERVE),
        Ring("one", Mode.ANNEX, State.PAUSED),
        Ring("one", Mode.ANNEX, canaries=Canaries(99)),
        Ring("one", Mode.ANNEX, canaries=Canaries(0, ("x",))),
    ],
)
def test_no_ring_overtakes(ring: Ring) -> None:
    whole = Rollout(1, (ring, Ring("two", Mode.OBSERVE)), Thresholds(0))
    with pytest.raises(PolicyError, match="ring one comes before it"):
        promote(whole, "two", NOTHING, BY)


@pytest.mark.parametrize(
    ("ring", "said"),
    [
        (Ring("one", Mode.NATIVE), "it is the last stage"),
        (Ring("one", Mode.OBSERVE, State.PAUSED, "a failure"), r"it is paused \(a failure\): resume it first"),
        (Ring("one", Mode.OBSERVE, State.ABORTED), "it is aborted: resume it first"),
        (Ring("one", Mode.OBSERVE, canaries=Canaries(5)), "only canaries have its stage yet"),
        (Ring("one", Mode.OBSERVE, baseline={Mode.ANNEX: Counts(failed=1)}), "the counts of some hosts are gone"),
    ],
)
def test_what_else_stands_against_it(ring: Ring, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        promote(Rollout(1, (ring,), Thresholds(0)), "one", NOTHING, BY)


def test_a_ring_that_there_is_not() -> None:
    with pytest.raises(PolicyError, match="the rollout has no ring 'three'; it has one, two"):
        promote(TWO, "three", NOTHING, BY)


@pytest.mark.parametrize("stage", STAGES)
def test_an_aborted_ring_begins_at_observe_again(stage: Mode) -> None:
    whole = rollout({"one": stage})
    aborted = abort(whole, [], "why not", BY).ring("one")
    assert (aborted.state, aborted.why) == (State.ABORTED, "why not")
    resumed = resume(abort(whole, [], "", BY), [], NOTHING, BY).ring("one")
    assert (resumed.state, resumed.stage) == (State.RUNNING, Mode.OFF if stage is Mode.OFF else Mode.OBSERVE)


def test_a_paused_ring_keeps_its_stage_and_counts_anew() -> None:
    paused = pause(TWO, ["one"], "lunch", BY)
    assert [ring.state for ring in paused.rings] == [State.PAUSED, State.RUNNING]
    totals = seen(failed=5, migrations=7)
    resumed = resume(paused, [], totals, BY)
    assert resumed.ring("one") == replace(TWO.ring("one"), by=BY.who, at=BY.at, baseline=totals["one"])
    assert not too_many(resumed, resumed.ring("one"), totals)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: resume(TWO, [], NOTHING, BY), "no ring is paused or aborted: one is running, two is running"),
        (lambda: pause(pause(TWO, [], "", BY), ["two"], "", BY), "no ring is running: two is paused"),
        (lambda: abort(abort(TWO, [], "", BY), [], "", BY), "no ring is left to be aborted"),
        (lambda: set_values(TWO, Settings(), BY), "nothing is to be set"),
        (lambda: set_values(TWO, Settings(percent=5), BY), "canaries are of one ring"),
        (lambda: set_values(TWO, Settings(percent=5, ring="x"), BY), "no ring 'x'"),
    ],
)
def test_what_changes_nothing_is_refused(change: Callable[[], Rollout], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        change()


def test_everything_can_be_set_and_taken_back() -> None:
    settings = Settings(
        least_migrations=7,
        most_failures=2,
        ring="two",
        percent=5,
        labels=("x",),
        hosts={"a": Mode.OFF},
        domains={DOMAIN: Mode.OBSERVE},
    )
    changed = set_values(TWO, settings, BY)
    assert changed.thresholds == Thresholds(7, 2, 1)
    assert changed.ring("two").canaries == Canaries(5, ("x",))
    assert (changed.hosts, changed.domains) == ({"a": Mode.OFF}, {DOMAIN: Mode.OBSERVE})
    back = set_values(changed, Settings(hosts={"a": None, "b": None}, domains={DOMAIN: None}), BY)
    assert (back.hosts, back.domains) == ({}, {})


@pytest.mark.parametrize("mode", Mode)
def test_too_many_failures_pause_a_ring_in_whatever_mode(mode: Mode) -> None:
    assert pause_failing(TWO, Sum(seen(mode, failed=1, vetoed=1)), BY) is None
    paused = pause_failing(TWO, Sum(seen(mode, failed=2)), BY)
    assert paused is not None
    assert [ring.state for ring in paused.rings] == [State.PAUSED, State.RUNNING]
    assert pause_failing(paused, Sum(seen(mode, failed=3)), BY) is None


def test_a_failure_that_is_told_after_the_promotion_pauses_the_next_stage() -> None:
    further = promote(TWO, "one", seen(migrations=3), BY)
    late = summed([seen(migrations=3), seen(failed=2)])
    paused = pause_failing(further, Sum(late), BY)
    assert paused is not None
    assert paused.ring("one").stage is Mode.ANNEX


def test_a_tally_that_is_gone_does_not_make_up_for_failures() -> None:
    before = {"one": {Mode.OBSERVE: Counts(failed=5)}}
    whole = replace(TWO, rings=(replace(TWO.ring("one"), baseline=before["one"]),))
    assert pause_failing(whole, Sum(seen(Mode.ANNEX, failed=2)), BY) is not None


def test_where_tallies_cannot_be_read_one_failure_pauses() -> None:
    unreadable = Sum(NOTHING, ("tallies/x: damaged",))
    assert pause_failing(TWO, unreadable, BY) is None
    paused = pause_failing(TWO, unreadable, BY, ["two", "elsewhere"])
    assert paused is not None
    assert [ring.state for ring in paused.rings] == [State.RUNNING, State.PAUSED]
    with pytest.raises(HostError, match="tallies/x: damaged"):
        assert unreadable.whole


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (Outcome.COMPLETED, Counts(migrations=1)),
        (Outcome.SENT, Counts(migrations=1)),
        (Outcome.VETOED, Counts(vetoed=1)),
        (Outcome.REFUSED, Counts(failed=1)),
        (Outcome.FAILED, Counts(failed=1)),
        (Outcome.IN_DOUBT, Counts(in_doubt=1)),
        (Outcome.STOPPED, None),
        (Outcome.CANCELLED, None),
    ],
)
def test_what_a_report_counts(outcome: Outcome, counts: Counts | None) -> None:
    report = {"outcome": outcome.value, "mode": "annex"}
    assert counted(report) == (None if counts is None else (Mode.ANNEX, counts))
    assert counted({**report, "switched_off": True}) == (None if counts is None else (Mode.OFF, counts))
    assert len(Outcome) == 8


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"outcome": "completed"},
        {"outcome": "x", "mode": "annex"},
    ],
)
def test_what_is_of_another_version_counts_nothing(report: dict[str, str]) -> None:
    assert counted(report) is None


@pytest.mark.parametrize(
    ("told", "counts"),
    [
        ({"channels": [], "moments": {"waiting": "now", "ended": "now"}}, False),
        ({"channels": []}, False),
        ({"channels": ["main"], "moments": {"waiting": "now"}}, True),
        ({"channels": ["main"], "moments": {"connected": "now"}}, True),
        ({"channels": [], "moments": {"waiting": "now", "streaming": "now"}}, True),
        ({}, True),
    ],
)
def test_a_failure_counts_once_a_source_came(told: dict[str, Any], counts: bool) -> None:
    found = counted({"outcome": "failed", "mode": "annex", **told})
    assert found == ((Mode.ANNEX, Counts(failed=1)) if counts else None)


def test_a_session_counts_once() -> None:
    tally = Tally().add("s", ["one", "two"], Mode.ANNEX, Counts(migrations=1))
    assert tally.add("s", ["one"], Mode.ANNEX, Counts(failed=1)) is tally
    assert tally.totals == summed([seen(Mode.ANNEX, migrations=1), seen(Mode.ANNEX, "two", migrations=1)])
