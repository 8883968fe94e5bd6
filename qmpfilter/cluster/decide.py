# SPDX-License-Identifier: GPL-2.0-or-later
"""The effective mode of one migration. Pure.

Everybody who has a say names the most that may be done, and the least of that is done: no voice can give what another
has taken away, so nobody needs to know in which order they speak. In particular the two ends of a migration may be in
rings of different stages. The lesser stage holds then: the source's host does the editing, so its ring must be that
far, and the destination's kernel gets what was edited, so its ring must be too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from qmpfilter.cluster.host import HostRecord
from qmpfilter.cluster.rollout import Rollout, State, stage_before
from qmpfilter.errors import PolicyError
from qmpfilter.filter.policy import Enforcement, Mode
from qmpfilter.verdict.judge import Outcome

__all__ = ["FROM_LEAST", "VOICES", "Decision", "Situation", "Step", "Voice", "decide", "table"]

FROM_LEAST: Final = (Mode.OFF, Mode.OBSERVE, Mode.LEGACY, Mode.ANNEX, Mode.NATIVE)
"""How much is done to a stream: nothing, it is read, records are taken out, are put in, stand alone."""


@dataclass(frozen=True, slots=True)
class Situation:
    """All that is known of a migration before its first byte.

    :param rollout: None if none has begun
    :param source: the host where the guest runs; None if it is not listed
    :param destination: the host where it is to go; None if it is not listed, or not known
    :param domain: its uuid; None if it is not known
    :param off: why everything passes as it is; empty if the kill switch is not on
    :param stale: why what is known of the cluster is too old; empty if it is not
    :param configured: the mode that the source host's configuration names
    :param asked: the mode that whoever began the migration asks for
    :param wished: the mode that the domain's policy names
    :param verdict: of the destination on the guest's state, where it was judged already
    :param enforcement: what follows from it
    """

    rollout: Rollout | None
    source: HostRecord | None
    destination: HostRecord | None
    domain: str | None = None
    off: str = ""
    stale: str = ""
    configured: Mode | None = None
    asked: Mode | None = None
    wished: Mode | None = None
    verdict: Outcome | None = None
    enforcement: Enforcement = Enforcement.ENFORCE


@dataclass(frozen=True, slots=True)
class Step:
    """What one voice says.

    :param who: the voice
    :param most: that it allows
    :param why: in a sentence
    """

    who: str
    most: Mode
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer.

    :param mode: what is done
    :param steps: what was said, in the order of :data:`VOICES`
    :param stopped: the migration is to be stopped before its commit point because of the verdict
    """

    mode: Mode
    steps: tuple[Step, ...]
    stopped: bool

    @property
    def why(self) -> str:
        """The sentence of the first that allows no more."""
        return next((step.why for step in self.steps if step.most is self.mode), "nobody is against it")


@dataclass(frozen=True, slots=True)
class Voice:
    """Somebody who has a say.

    :param who: in words
    :param says: what it says of a situation; nothing if it has nothing against it
    :param cases: when it says something, and the most that it allows then, in words
    """

    who: str
    says: Callable[[Situation], Iterator[Step]]
    cases: tuple[tuple[str, str], ...]


def decide(situation: Situation) -> Decision:
    """What is done to a migration, and how that came about."""
    steps = tuple(step for voice in VOICES for step in voice.says(situation))
    mode = min((step.most for step in steps), key=FROM_LEAST.index, default=Mode.NATIVE)
    edits = FROM_LEAST.index(mode) > FROM_LEAST.index(Mode.OBSERVE)
    refused = situation.verdict is Outcome.REFUSED and situation.enforcement is Enforcement.ENFORCE
    return Decision(mode, steps, edits and refused)


def table() -> str:
    """The voices as a table in Markdown."""
    rows = [("Who", "when", "allows at most"), ("---", "---", "---")]
    rows += [(voice.who, *case) for voice in VOICES for case in voice.cases]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _ends(situation: Situation) -> tuple[tuple[str, HostRecord | None], tuple[str, HostRecord | None]]:
    return ("source", situation.source), ("destination", situation.destination)


def _kill_switch(situation: Situation) -> Iterator[Step]:
    if situation.off:
        yield Step("kill switch", Mode.OFF, situation.off)


def _store(situation: Situation) -> Iterator[Step]:
    if situation.stale:
        yield Step("store", Mode.OBSERVE, situation.stale)


def _no_rollout(situation: Situation) -> Iterator[Step]:
    if situation.rollout is None:
        yield Step("rollout", Mode.OBSERVE, "no rollout has begun")


def _configuration(situation: Situation) -> Iterator[Step]:
    if situation.configured is not None:
        yield Step("configuration", situation.configured, f"this host's configuration says {situation.configured}")


def _request(situation: Situation) -> Iterator[Step]:
    if situation.asked is not None:
        yield Step("request", situation.asked, f"{situation.asked} was asked for")


def _domain_policy(situation: Situation) -> Iterator[Step]:
    if situation.wished is not None:
        yield Step("domain's policy", situation.wished, f"the domain's policy says {situation.wished}")


def _unlisted(situation: Situation) -> Iterator[Step]:
    for end, host in _ends(situation):
        if host is None:
            yield Step(end, Mode.OBSERVE, f"the {end} is no host that the cluster lists")


def _ailing(situation: Situation) -> Iterator[Step]:
    for end, host in _ends(situation):
        if host is not None and host.ailing:
            yield Step(f"{end}'s health", Mode.OBSERVE, f"{host.name} is not healthy: {host.ailing}")


def _unknown(situation: Situation) -> Iterator[Step]:
    for end, host in _ends(situation):
        if host is not None and not host.known:
            what = "which kernel it has" if host.facts.kernel is None else "which formats it takes"
            yield Step(f"{end}'s facts", Mode.OBSERVE, f"of {host.name} it is not known {what}")


def _formats(situation: Situation) -> Iterator[Step]:
    host = situation.destination
    if host is None or not host.known or "svm2" in host.facts.formats:
        return
    if Mode.ANNEX in host.facts.formats:
        yield Step("destination's formats", Mode.ANNEX, f"{host.name} does not announce svm2, but takes the annex")
    else:
        yield Step("destination's formats", Mode.OBSERVE, f"{host.name} announces neither svm2 nor the annex")


def _rings(situation: Situation) -> Iterator[Step]:
    rollout = situation.rollout
    if rollout is None:
        return
    for end, host in _ends(situation):
        if host is None:
            continue
        who = f"{end}'s ring"
        try:
            ring = rollout.ring(host.ring)
        except PolicyError:
            yield Step(who, Mode.OBSERVE, f"{host.name} is in ring {host.ring}, which the rollout does not have")
            continue
        because = f" ({ring.why})" if ring.why else ""
        stage, why = ring.stage, f"ring {ring.name} is at {ring.stage}"
        if not ring.canaries.include(host.labels, situation.domain):
            stage, why = stage_before(stage), f"{why} for canaries alone, and this is none"
        if ring.state is State.ABORTED:
            yield Step(who, Mode.OFF, f"ring {ring.name} is aborted{because}")
        elif ring.state is State.PAUSED and stage is not Mode.OFF:
            yield Step(who, Mode.OBSERVE, f"ring {ring.name} is paused{because}")
        else:
            yield Step(who, stage, why)


def _host_override(situation: Situation) -> Iterator[Step]:
    rollout = situation.rollout
    for end, host in _ends(situation):
        if rollout is not None and host is not None and host.name in rollout.hosts:
            most = rollout.hosts[host.name]
            yield Step(f"{end}'s override", most, f"host {host.name} is held at {most}")


def _domain_override(situation: Situation) -> Iterator[Step]:
    rollout, domain = situation.rollout, situation.domain
    if rollout is not None and domain is not None and domain in rollout.domains:
        yield Step("domain's override", rollout.domains[domain], f"the domain is held at {rollout.domains[domain]}")
    elif rollout is not None and domain is None and rollout.domains:
        least = min(rollout.domains.values(), key=FROM_LEAST.index)
        yield Step("domain's override", least, f"some domains are held at {least}, and which this is was not told")


VOICES: Final = (
    Voice("kill switch", _kill_switch, (("it is on, at this host or for all", "`off`"),)),
    Voice("store", _store, (("it was away for longer than the configuration allows", "`observe`"),)),
    Voice("rollout", _no_rollout, (("none has begun", "`observe`"),)),
    Voice(
        "ring of the source, ring of the destination",
        _rings,
        (
            ("it is aborted", "`off`"),
            ("it is paused", "`observe`"),
            ("the rollout does not have it", "`observe`"),
            ("it has canaries, and this is none", "the stage before its own"),
            ("else", "its stage"),
        ),
    ),
    Voice("override of the source, override of the destination", _host_override, (("there is one", "that"),)),
    Voice(
        "override of the domain",
        _domain_override,
        (("there is one", "that"), ("there are some, and the domain was not told", "the least of them")),
    ),
    Voice("domain's policy", _domain_policy, (("it names a mode", "that"),)),
    Voice("request", _request, (("it names a mode", "that"),)),
    Voice("configuration of the source's host", _configuration, (("it names a mode", "that"),)),
    Voice("source, destination", _unlisted, (("the cluster does not list it", "`observe`"),)),
    Voice("health of the source, of the destination", _ailing, (("it is not good", "`observe`"),)),
    Voice("facts of the source, of the destination", _unknown, (("kernel or formats are not known", "`observe`"),)),
    Voice(
        "formats of the destination",
        _formats,
        (("`svm2` is missing", "`annex`"), ("`annex` is missing too", "`observe`")),
    ),
)
"""Everybody who has a say."""
