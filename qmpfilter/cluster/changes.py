# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be done to a rollout: each takes one and gives the next, or says why not. Pure.

::

              promote: the next stage          start
            ┌───────┐                            │
            │       v                            v
            └─── running <───────────────── off or observe
                 │  ^  │
    pause, or    │  │  │ abort
    failures     │  │  │
                 v  │  v
             paused │ aborted: the stage is observe again
                 └──┴──┘
                 resume
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qmpfilter.cluster.counts import ByMode, Counts, Sum, Totals, since
from qmpfilter.cluster.rollout import (
    EVERYONE,
    STAGES,
    Canaries,
    Change,
    Ring,
    Rollout,
    State,
    Thresholds,
    check_rings,
    stage_after,
)
from qmpfilter.errors import PolicyError
from qmpfilter.filter.policy import Mode

__all__ = [
    "By",
    "Settings",
    "abort",
    "obstacles",
    "pause",
    "pause_failing",
    "promote",
    "resume",
    "set_values",
    "start",
    "too_many",
]


@dataclass(frozen=True, slots=True)
class By:
    """Who changes it, and when (UTC)."""

    who: str
    at: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator sets; None, or nothing, leaves it as it is.

    :param ring: whose canaries are meant
    :param hosts: the most that they get; None takes that away again
    :param domains: the same, by uuid
    """

    least_migrations: int | None = None
    most_failures: int | None = None
    most_vetoes: int | None = None
    ring: str | None = None
    percent: int | None = None
    labels: tuple[str, ...] | None = None
    hosts: Mapping[str, Mode | None] = field(default_factory=dict)
    domains: Mapping[str, Mode | None] = field(default_factory=dict)


def start(existing: Rollout | None, rings: Sequence[str], totals: Totals, by: By) -> Rollout:
    """A new one: the first ring observes, the others are off.

    :raises PolicyError: there is one that is not aborted in all its rings, or the rings cannot be
    """
    if existing is not None and any(ring.state is not State.ABORTED for ring in existing.rings):
        raise PolicyError("a rollout has begun already: abort it first, or go on with promote and resume")
    check_rings(rings)
    first, *others = (Ring(name, by=by.who, at=by.at, baseline=totals.get(name, {})) for name in rings)
    whole = Rollout(
        0 if existing is None else existing.serial,
        (replace(first, stage=Mode.OBSERVE), *others),
        history=() if existing is None else existing.history,
    )
    return _changed(whole, by, f"start with rings {', '.join(rings)}")


def promote(rollout: Rollout, name: str, totals: Totals, by: By, canaries: Canaries = EVERYONE) -> Rollout:
    """A ring at its next stage.

    :param canaries: who gets it first
    :raises PolicyError: something stands against it
    """
    ring = rollout.ring(name)
    against = list(obstacles(rollout, ring, totals))
    following = stage_after(ring.stage)
    if against or following is None:
        raise PolicyError(f"ring {name} stays at {ring.stage}: {'; '.join(against)}")
    new = replace(
        ring, stage=following, by=by.who, at=by.at, canaries=canaries, baseline=totals.get(name, ring.baseline)
    )
    return _with(rollout, [new], by, f"promote {name} from {ring.stage} to {following}{_of_canaries(canaries)}")


def pause(rollout: Rollout, names: Sequence[str], why: str, by: By) -> Rollout:
    """Nothing is edited in these rings until they are resumed; no names are all that run.

    :raises PolicyError: none of them runs
    """
    rings = _those(rollout, names, lambda ring: ring.state is State.RUNNING, "is running")
    paused = [replace(ring, state=State.PAUSED, why=why, by=by.who, at=by.at) for ring in rings]
    return _with(rollout, paused, by, f"pause {_named(rings)}{_because(why)}")


def abort(rollout: Rollout, names: Sequence[str], why: str, by: By) -> Rollout:
    """Everything passes unread in these rings; no names are all.

    :raises PolicyError: all of them are aborted already
    """
    rings = _those(rollout, names, lambda ring: ring.state is not State.ABORTED, "is left to be aborted")
    aborted = [
        replace(
            ring,
            stage=min(ring.stage, Mode.OBSERVE, key=STAGES.index),
            state=State.ABORTED,
            why=why,
            by=by.who,
            at=by.at,
            canaries=EVERYONE,
        )
        for ring in rings
    ]
    return _with(rollout, aborted, by, f"abort {_named(rings)}{_because(why)}")


def resume(rollout: Rollout, names: Sequence[str], totals: Totals, by: By) -> Rollout:
    """These rings run again, and count anew; no names are all that do not run.

    :raises PolicyError: all of them run
    """
    rings = _those(rollout, names, lambda ring: ring.state is not State.RUNNING, "is paused or aborted")
    running = [
        replace(ring, state=State.RUNNING, why="", by=by.who, at=by.at, baseline=totals.get(ring.name, ring.baseline))
        for ring in rings
    ]
    return _with(rollout, running, by, f"resume {_named(rings)}")


def set_values(rollout: Rollout, settings: Settings, by: By) -> Rollout:
    """With other thresholds, canaries or overrides.

    :raises PolicyError: canaries of no ring, or nothing is set
    """
    said: list[str] = []
    given = {name: value for name in Thresholds.__slots__ if (value := getattr(settings, name)) is not None}
    said += [f"{name} {value}" for name, value in given.items()]
    rings: list[Ring] = []
    if settings.percent is not None or settings.labels is not None:
        if settings.ring is None:
            raise PolicyError("canaries are of one ring: say which")
        ring = rollout.ring(settings.ring)
        canaries = Canaries(
            ring.canaries.percent if settings.percent is None else settings.percent,
            ring.canaries.labels if settings.labels is None else settings.labels,
        )
        rings = [replace(ring, canaries=canaries)]
        said.append(f"ring {ring.name}:{_of_canaries(canaries) or ' everyone'}")
    said += [f"{name} {mode or 'as its ring'}" for name, mode in {**settings.hosts, **settings.domains}.items()]
    if not said:
        raise PolicyError("nothing is to be set")
    whole = replace(
        rollout,
        thresholds=replace(rollout.thresholds, **given),
        hosts=_overridden(rollout.hosts, settings.hosts),
        domains=_overridden(rollout.domains, settings.domains),
    )
    return _with(whole, rings, by, f"set {', '.join(said)}")


def pause_failing(rollout: Rollout, counts: Sum, by: By, worse: Sequence[str] = ()) -> Rollout | None:
    """With every ring paused that saw more than its thresholds allow; None if there is none that runs.

    :param worse: rings where something has just failed: where tallies cannot be read, nobody can say how much that
        makes together, and they are paused too
    """
    failing: dict[str, str] = {}
    for ring in rollout.rings:
        why = too_many(rollout, ring, counts.readable)
        if not why and counts.damaged and ring.name in worse:
            why = f"something failed, and how much cannot be told: {counts.damaged[0]}"
        if why and ring.state is State.RUNNING:
            failing[ring.name] = why
    if not failing:
        return None
    paused = [
        replace(ring, state=State.PAUSED, why=failing[ring.name], by=by.who, at=by.at)
        for ring in rollout.rings
        if ring.name in failing
    ]
    return _with(rollout, paused, by, "; ".join(f"pause {name}: {why}" for name, why in failing.items()))


def too_many(rollout: Rollout, ring: Ring, totals: Totals) -> str:
    """Why a ring is to be paused, empty if it need not: what failed in whatever mode counts against its stage."""
    seen = _seen(ring, totals)
    # Where a tally is gone, one mode's count is below 0, and must not make up for another's.
    failures = sum(max(counts.failures, 0) for counts in seen.values())
    vetoed = sum(max(counts.vetoed, 0) for counts in seen.values())
    limits = rollout.thresholds
    said = []
    if failures > limits.most_failures:
        said.append(f"failed or in doubt: {failures}, allowed: {limits.most_failures}")
    if vetoed > limits.most_vetoes:
        said.append(f"vetoed: {vetoed}, allowed: {limits.most_vetoes}")
    return ", ".join(said)


def obstacles(rollout: Rollout, ring: Ring, totals: Totals) -> Iterator[str]:
    """What stands against a ring's next stage, in sentences."""
    following = stage_after(ring.stage)
    if following is None:
        yield "it is the last stage"
        return
    if ring.state is not State.RUNNING:
        yield f"it is {ring.state}{_because(ring.why)}: resume it first"
    if not ring.canaries.everyone:
        yield "only canaries have its stage yet: give it to all with 'rollout set --percent 100' first"
    for earlier in rollout.rings[: rollout.rings.index(ring)]:
        if STAGES.index(earlier.stage) < STAGES.index(following) or not earlier.canaries.everyone:
            yield f"ring {earlier.name} comes before it and is not at {following} with all its domains yet"
        elif earlier.state is not State.RUNNING:
            yield f"ring {earlier.name} comes before it and is {earlier.state}"
    seen = _seen(ring, totals)
    if not all(counts.is_sum for counts in seen.values()):
        yield "the counts of some hosts are gone since its stage began: pause and resume it, to count anew"
    done = seen.get(ring.stage, Counts()).migrations
    # What is off is seen by nobody.
    if ring.stage is not Mode.OFF and done < rollout.thresholds.least_migrations:
        yield f"{done} of {rollout.thresholds.least_migrations} migrations are done at this stage"
    if why := too_many(rollout, ring, totals):
        yield why


def _seen(ring: Ring, totals: Totals) -> ByMode:
    return since(ring.baseline, totals.get(ring.name, {}))


def _those(rollout: Rollout, names: Sequence[str], fit: Callable[[Ring], bool], what: str) -> list[Ring]:
    rings = [rollout.ring(name) for name in dict.fromkeys(names)] or list(rollout.rings)
    found = [ring for ring in rings if fit(ring)]
    if not found:
        raise PolicyError(f"no ring {what}: {', '.join(f'{ring.name} is {ring.state}' for ring in rings)}")
    return found


def _with(rollout: Rollout, rings: Sequence[Ring], by: By, what: str) -> Rollout:
    new = {ring.name: ring for ring in rings}
    return _changed(replace(rollout, rings=tuple(new.get(ring.name, ring) for ring in rollout.rings)), by, what)


def _changed(rollout: Rollout, by: By, what: str) -> Rollout:
    history = (*rollout.history, Change(by.at, by.who, what))
    return replace(rollout, serial=rollout.serial + 1, history=history)


def _overridden(old: Mapping[str, Mode], new: Mapping[str, Mode | None]) -> dict[str, Mode]:
    return {name: mode for name, mode in {**old, **new}.items() if mode is not None}


def _named(rings: Sequence[Ring]) -> str:
    return ", ".join(ring.name for ring in rings)


def _because(why: str) -> str:
    return f" ({why})" if why else ""


def _of_canaries(canaries: Canaries) -> str:
    if canaries.everyone:
        return ""
    labels = f" and hosts labelled {', '.join(canaries.labels)}" if canaries.labels else ""
    return f" for {canaries.percent}% of the domains{labels}"
