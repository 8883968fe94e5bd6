# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rollout would do, before it begins: every stage of every ring over the hosts that are listed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from qmpfilter.cluster.decide import FROM_LEAST, Situation, decide
from qmpfilter.cluster.host import HostRecord
from qmpfilter.cluster.rollout import EVERYONE, STAGES, Rollout, State
from qmpfilter.filter.policy import Mode

__all__ = ["Held", "Move", "plan", "without_ring"]


@dataclass(frozen=True, slots=True)
class Held:
    """Pairs of hosts that get less than their rings' stages.

    :param pairs: how many
    :param example: source and destination of one
    :param why: of all of them
    """

    mode: Mode
    pairs: int
    example: tuple[str, str]
    why: str


@dataclass(frozen=True, slots=True)
class Move:
    """The rollout after one promotion.

    :param ring: that was promoted; its stage is `stage` then
    :param needed: migrations that the ring has to see there before it goes on
    :param pairs: ordered pairs of different hosts, by the mode of a migration from the one to the other
    :param held: those that get less than the lesser of their rings' stages
    """

    ring: str
    stage: Mode
    needed: int
    pairs: Mapping[Mode, int]
    held: tuple[Held, ...]


def plan(rollout: Rollout, hosts: Iterable[HostRecord]) -> Iterator[Move]:
    """All promotions to come, in an order that the rollout allows: every ring to a stage, then the next stage.

    Canaries and overrides of domains are left out: every stage is shown as it is for most, once all have it. Rings
    that are paused or aborted are taken for resumed.
    """
    classes = _classes(hosts)
    rings = [replace(ring, state=State.RUNNING, why="", canaries=EVERYONE) for ring in rollout.rings]
    current = replace(rollout, rings=tuple(rings), domains={})
    for stage, name in product(STAGES[1:], [ring.name for ring in rollout.rings]):
        if STAGES.index(current.ring(name).stage) >= STAGES.index(stage):
            continue
        current = replace(
            current, rings=tuple(replace(ring, stage=stage) if ring.name == name else ring for ring in current.rings)
        )
        needed = 0 if stage is STAGES[-1] else rollout.thresholds.least_migrations
        yield Move(name, stage, needed, *_pairs(current, classes))


def without_ring(rollout: Rollout, hosts: Iterable[HostRecord]) -> list[str]:
    """Names of the hosts whose ring the rollout does not have."""
    rings = {ring.name for ring in rollout.rings}
    return [host.name for host in hosts if host.ring not in rings]


def _classes(hosts: Iterable[HostRecord]) -> list[list[HostRecord]]:
    """Hosts of which a decision is the same, so that ten thousand hosts are not a hundred million pairs."""
    classes: dict[object, list[HostRecord]] = {}
    for host in hosts:
        alike = (host.ring, host.facts.kernel is None, tuple(sorted(host.facts.formats)), bool(host.ailing))
        classes.setdefault(alike, []).append(host)
    return list(classes.values())


def _pairs(rollout: Rollout, classes: list[list[HostRecord]]) -> tuple[dict[Mode, int], tuple[Held, ...]]:
    split = list(_by_override(rollout, classes))
    modes: Counter[Mode] = Counter()
    held: dict[tuple[Mode, str], Held] = {}
    for sources, destinations in product(split, split):
        same = sources is destinations
        count = len(sources) * (len(destinations) - same)
        if not count:
            continue
        source, destination = sources[0], destinations[1 if same else 0]
        decision = decide(Situation(rollout, source, destination))
        modes[decision.mode] += count
        if FROM_LEAST.index(decision.mode) < FROM_LEAST.index(_intended(rollout, source, destination)):
            why = decision.why
            before = held.get((decision.mode, why), Held(decision.mode, 0, (source.name, destination.name), why))
            held[decision.mode, why] = replace(before, pairs=before.pairs + count)
    rows = sorted(held.values(), key=lambda one: (-one.pairs, one.why))
    return {mode: modes[mode] for mode in FROM_LEAST if modes[mode]}, tuple(rows)


def _by_override(rollout: Rollout, classes: list[list[HostRecord]]) -> Iterator[list[HostRecord]]:
    for hosts in classes:
        parts: dict[Mode | None, list[HostRecord]] = {}
        for host in hosts:
            parts.setdefault(rollout.hosts.get(host.name), []).append(host)
        yield from parts.values()


def _intended(rollout: Rollout, *hosts: HostRecord) -> Mode:
    """The lesser of their rings' stages."""
    stages = {ring.name: ring.stage for ring in rollout.rings}
    return min((stages.get(host.ring, Mode.NATIVE) for host in hosts), key=FROM_LEAST.index)
