# SPDX-License-Identifier: GPL-2.0-or-later
"""The mode of a migration, for all that can be known of it, against rules that are written down another way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from qmpfilter.cluster.decide import FROM_LEAST, VOICES, Decision, Situation, decide, table
from qmpfilter.cluster.host import HostRecord
from qmpfilter.cluster.rollout import STAGES, Canaries, Ring, Rollout, State, bucket
from qmpfilter.filter.policy import Enforcement, Mode
from qmpfilter.verdict.judge import Outcome
from tests.helpers.cluster import ANNEX, DOMAIN, NATIVE, host, rollout

GUIDE = Path(__file__).parent.parent.parent / "examples" / "rollout" / "README.md"
PLACE = {mode: place for place, mode in enumerate(FROM_LEAST)}

SOURCES = (
    host("a", "one", *ANNEX),
    host("a", "one", *NATIVE, labels=("early",)),
    host("a", "one", ailing="no SVM"),
    host("a", "none", *ANNEX),
    host("a", "one", *ANNEX, kernel=None),
    None,
)
DESTINATIONS = (
    host("b", "two", *ANNEX),
    host("b", "two", *NATIVE),
    host("b", "two", "legacy"),
    host("b", "two"),
    host("b", "one", *NATIVE),
    host("b", "two", *NATIVE, ailing="no SVM"),
    host("b", "two", *NATIVE, kernel=None),
    None,
)
CANARIES = (Canaries(), Canaries(0, ("early",)), Canaries(bucket(DOMAIN)), Canaries(bucket(DOMAIN) + 1))
RINGS = tuple(product(STAGES, State))
ONE = tuple(Ring("one", stage, state, canaries=who) for (stage, state), who in product(RINGS, CANARIES))
TWO = tuple(Ring("two", stage, state) for stage, state in RINGS)
ROLLOUTS = (None, *(Rollout(1, rings) for rings in product(ONE, TWO)))


def situations() -> Iterator[Situation]:
    """Every rollout with every source, and every destination; what else is known has its own test."""
    for whole, source, destination in product(ROLLOUTS, SOURCES[:2], DESTINATIONS[:2]):
        yield Situation(whole, source, destination, DOMAIN)
    few = (None, *(rollout({"one": one, "two": two}) for one, two in product(STAGES, STAGES)))
    for whole, source, destination, off, stale in product(few, SOURCES, DESTINATIONS, ("", "off"), ("", "away")):
        yield Situation(whole, source, destination, DOMAIN, off, stale)
    modes = (None, *Mode)
    for asked, wished, configured, domain in product(modes, modes, modes, (DOMAIN, None)):
        for held in (None, *STAGES):
            overrides = {} if held is None else {DOMAIN: held}
            whole = rollout({"one": Mode.NATIVE, "two": Mode.NATIVE}, domains=overrides)
            source, destination = SOURCES[0], DESTINATIONS[1]
            yield Situation(whole, source, destination, domain, asked=asked, wished=wished, configured=configured)


def stage(whole: Rollout, end: HostRecord, domain: str | None) -> int:
    """How far a host's ring lets one go."""
    ring = {ring.name: ring for ring in whole.rings}.get(end.ring)
    if ring is None:
        return 1
    stages = [PLACE[one] for one in STAGES]
    place = stages.index(PLACE[ring.stage])
    labelled = any(label in ring.canaries.labels for label in end.labels)
    chosen = (
        labelled or ring.canaries.percent == 100 or (domain is not None and bucket(domain) < ring.canaries.percent)
    )
    own = stages[place] if chosen else stages[place - 1 if place else 0]
    return {State.RUNNING: own, State.PAUSED: min(own, stages[place], 1), State.ABORTED: 0}[ring.state]


def expected(s: Situation) -> Mode:
    """The rules, one after the other, as a person would go through them."""
    if s.off:
        return Mode.OFF
    ends = [end for end in (s.source, s.destination) if end is not None]
    left = PLACE[Mode.NATIVE]
    if s.rollout is not None:
        left = min([left, *(stage(s.rollout, end, s.domain) for end in ends)])
        for name, most in s.rollout.domains.items():
            if s.domain in (name, None):
                left = min(left, PLACE[most])
    for mode in (s.asked, s.wished, s.configured):
        left = left if mode is None else min(left, PLACE[mode])
    sure = len(ends) == 2 and s.rollout is not None and not s.stale
    if not sure or any(end.ailing or not end.facts.formats or end.facts.kernel is None for end in ends):
        return FROM_LEAST[min(left, 1)]
    assert s.destination is not None
    takes = s.destination.facts.formats
    if left == PLACE[Mode.NATIVE] and "svm2" not in takes:
        left = PLACE[Mode.ANNEX]
    if left >= PLACE[Mode.LEGACY] and not {"svm2", "annex"} & set(takes):
        left = PLACE[Mode.OBSERVE]
    return FROM_LEAST[left]


def check(s: Situation, decision: Decision) -> None:
    """What must hold whatever the rules are."""
    mode, most = decision.mode, PLACE[decision.mode]
    assert not s.off or mode is Mode.OFF
    assert not s.stale or most <= PLACE[Mode.OBSERVE]
    if s.rollout is None or s.source is None or s.destination is None:
        assert most <= PLACE[Mode.OBSERVE]
    else:
        if mode is Mode.NATIVE:
            assert "svm2" in s.destination.facts.formats
        for end in (s.source, s.destination):
            for ring in s.rollout.rings:
                if ring.name == end.ring:
                    assert most <= PLACE[ring.stage]
                    assert ring.state is State.RUNNING or most <= PLACE[Mode.OBSERVE]
                    assert ring.state is not State.ABORTED or mode is Mode.OFF
            if not end.known or end.ailing:
                assert most <= PLACE[Mode.OBSERVE]
    for wanted in (s.asked, s.wished, s.configured):
        assert wanted is None or most <= PLACE[wanted]
    # Whoever reads the steps comes to the same answer, and finds who it was.
    assert all(most <= PLACE[step.most] for step in decision.steps)
    assert mode is Mode.NATIVE or decision.why in [step.why for step in decision.steps]


def test_every_situation() -> None:
    count = 0
    for situation in situations():
        decision = decide(situation)
        assert decision.mode is expected(situation), situation
        check(situation, decision)
        count += 1
    assert count > 5000


@pytest.mark.parametrize("held", STAGES)
@pytest.mark.parametrize("end", ["a", "b"])
def test_an_override_of_either_host_only_takes_away(held: Mode, end: str) -> None:
    for at in STAGES:
        whole = rollout({"one": at, "two": at}, hosts={end: held})
        mode = decide(Situation(whole, SOURCES[1], DESTINATIONS[1])).mode
        assert mode is min(at, held, key=FROM_LEAST.index)


@pytest.mark.parametrize("outcome", [None, *Outcome])
@pytest.mark.parametrize("enforcement", Enforcement)
@pytest.mark.parametrize("stage", STAGES)
def test_a_verdict_stops_and_never_changes_the_mode(
    outcome: Outcome | None, enforcement: Enforcement, stage: Mode
) -> None:
    situation = Situation(rollout({"one": stage, "two": stage}), SOURCES[1], DESTINATIONS[1], DOMAIN)
    judged = decide(replace(situation, verdict=outcome, enforcement=enforcement))
    assert judged.mode is stage is decide(situation).mode
    edits = stage in (Mode.ANNEX, Mode.NATIVE)
    assert judged.stopped is (edits and outcome is Outcome.REFUSED and enforcement is Enforcement.ENFORCE)


def test_the_lesser_ring_wins_and_is_named() -> None:
    decision = decide(
        Situation(rollout({"one": Mode.ANNEX, "two": Mode.OBSERVE}), SOURCES[0], DESTINATIONS[1], DOMAIN)
    )
    assert (decision.mode, decision.why) == (Mode.OBSERVE, "ring two is at observe")


def test_the_guide_has_the_table_of_all_who_have_a_say() -> None:
    assert table() in GUIDE.read_text(encoding="utf-8")
    assert table().count("\n") == 2 + sum(len(voice.cases) for voice in VOICES)
