# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts of a simulated cluster: what their daemons do with the store, and what a table made anew allows them."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from typing import Final

from qmpfilter.cluster.address import Access, open_store
from qmpfilter.cluster.board import CONTROL, Board, signed
from qmpfilter.cluster.changes import pause_failing
from qmpfilter.cluster.counts import Sum, Tally, counted, worse
from qmpfilter.cluster.decide import Situation, decide
from qmpfilter.cluster.host import HostRecord, Seen
from qmpfilter.cluster.rollout import Ring, Rollout, State, Switch, bucket
from qmpfilter.cluster.store import Lease
from qmpfilter.filter.policy import Mode
from qmpfilter.relay.session import Outcome
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.version import Version

__all__ = ["FAILING", "RINGS", "SECONDS", "Share", "Told", "Turn", "take_turns"]

SECONDS: Final = 300.0
RINGS: Final = {"canary": 200, "early": 300, "rest": 500}
FAILING: Final = "early"

_LEASE_SECONDS: Final = 3600
_NEAR: Final = 0.7
"""How many migrations stay in a ring."""
_FORMATS: Final = (("legacy", "annex", "svm2"), ("legacy", "annex"), ("legacy",))
_LEAST_FIRST: Final = (Mode.OFF, Mode.OBSERVE, Mode.LEGACY, Mode.ANNEX, Mode.NATIVE)


@dataclass(frozen=True)
class Turn:
    """What a host knew in one of its turns.

    :param began: on the clock that all processes share, before the store was asked
    :param ended: when it had been
    :param edited: of its migrations
    """

    began: float
    ended: float
    serial: int
    off: bool
    migrations: int
    edited: int


@dataclass
class Told:
    """What a process has to tell of its hosts in the end.

    :param decisions: seconds that each took
    :param watches: seconds that each took, which is one request
    :param ended: migrations by ring, mode, and whether they did well
    :param wrong: sentences
    """

    turns: list[Turn] = field(default_factory=list)
    decisions: list[float] = field(default_factory=list)
    modes: Counter[Mode] = field(default_factory=Counter)
    ended: Counter[tuple[str, Mode, bool]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    watches: list[float] = field(default_factory=list)


@dataclass
class Host:
    """One host's daemon, as far as the store sees it."""

    record: HostRecord
    cursor: str | None = None
    rollout: Rollout | None = None
    switch: Switch | None = None
    seen: Seen = field(default_factory=Seen)
    tally: Tally = field(default_factory=Tally)


def _records() -> list[HostRecord]:
    chance = random.Random(1)
    rings = [name for name, count in RINGS.items() for _ in range(count)]
    return [
        HostRecord(
            name=f"host{number:04}",
            ring="unlisted" if chance.random() < 0.005 else ring,
            labels=("gold",) if chance.random() < 0.05 else (),
            addresses=(),
            qmpfilter="1.0",
            libvirt="11.3.0",
            facts=HostFacts(
                kernel_release="6.12.1" if (kernel := chance.random() > 0.01) else None,
                kernel=Version.parse("6.12.1") if kernel else None,
                formats=chance.choices(_FORMATS, (90, 8, 2))[0],
            ),
            ailing="its disk is full" if chance.random() < 0.01 else "",
            when="",
        )
        for number, ring in enumerate(rings)
    ]


@dataclass(frozen=True)
class Share:
    """Every so manieth of the hosts, and what they do."""

    part: int
    parts: int
    turns: int
    migrations: int


def take_turns(
    address: str, access: Access, share: Share, start: Barrier, done: Queue[int | Told], failing: Event
) -> None:
    """Be some of the hosts.

    :param done: gets after every turn of a host how many migrations it had, and in the end what there is to tell
    :param failing: while it is set, what the failing ring edits fails
    """
    told = Told()
    board = Board(open_store(address, access))
    mine = [Host(record) for record in _records()[share.part :: share.parts]]
    lease = board.store.lease(_LEASE_SECONDS)
    for host in mine:
        board.publish(host.record, lease)
    start.wait(SECONDS)
    everyone = list(board.hosts().good.values())
    near = {ring: [one for one in everyone if one.ring == ring] for ring in {one.ring for one in everyone}}
    chance = random.Random(share.part)
    for _ in range(share.turns):
        for host in mine:
            began = time.monotonic()
            _follow(board, host, lease, told)
            ended, before, edited = time.monotonic(), host.tally, 0
            for _ in range(share.migrations):
                among = near[host.record.ring] if chance.random() < _NEAR else everyone
                domain = str(uuid.UUID(int=chance.getrandbits(128)))
                edited += _migrate(host, chance.choice(among), domain, failing, told)
            told.turns.append(Turn(began, ended, host.seen.serial, host.seen.off, share.migrations, edited))
            _say(board, host, before)
            done.put(share.migrations)
    done.put(told)


def _follow(board: Board, host: Host, lease: Lease, told: Told) -> None:
    begin = time.perf_counter()
    sight = board.store.watch(CONTROL, host.cursor, 0.0)
    told.watches.append(time.perf_counter() - begin)
    host.cursor = sight.cursor
    if sight.changed:
        host.switch, host.rollout = board.switch(), board.rollout()
        seen = Seen(host.rollout.serial if host.rollout else 0, host.switch is not None)
        if seen != host.seen:
            host.seen = seen
            board.say_seen(host.record.name, seen, lease)


def _migrate(host: Host, destination: HostRecord, domain: str, failing: Event, told: Told) -> bool:
    """True if it was edited."""
    off = "switched off for all" if host.switch else ""
    begin = time.perf_counter()
    decision = decide(Situation(host.rollout, host.record, destination, domain, off=off))
    told.decisions.append(time.perf_counter() - begin)
    allowed = _allowed(host.rollout, bool(off), host.record, destination, domain)
    if decision.mode is not allowed:
        told.wrong.append(f"{host.record.name} to {destination.name}: {decision.mode}, and {allowed} is allowed")
    fails = failing.is_set() and host.record.ring == FAILING and decision.mode is Mode.ANNEX
    outcome = Outcome.FAILED if fails else Outcome.COMPLETED
    adds = counted({"outcome": outcome, "mode": decision.mode})
    assert adds is not None
    rings = {host.record.ring, destination.ring}
    host.tally = host.tally.add(domain, rings, *adds)
    told.ended.update((ring, decision.mode, not fails) for ring in rings)
    told.modes[decision.mode] += 1
    return decision.mode not in (Mode.OFF, Mode.OBSERVE)


def _say(board: Board, host: Host, before: Tally) -> None:
    board.say_tally(host.record.name, host.tally)
    # All tallies are read only by who has something to pause for.
    if worse(before.totals, host.tally.totals):
        by = signed(f"host {host.record.name}")

        def pausing(rollout: Rollout | None, counts: Sum) -> Rollout | None:
            return None if rollout is None else pause_failing(rollout, counts, by)

        board.change(pausing)


def _allowed(rollout: Rollout | None, off: bool, source: HostRecord, destination: HostRecord, domain: str) -> Mode:
    """What a migration may get, thought through once more and otherwise than the package does it."""
    if off:
        return Mode.OFF
    if rollout is None:
        return Mode.OBSERVE
    rings = {ring.name: ring for ring in rollout.rings}
    most = 4
    for host in (source, destination):
        most = min(most, _of_ring(rings.get(host.ring), host, domain))
        if host.ailing or host.facts.kernel is None:
            most = min(most, 1)
    for format, without in (("svm2", 3), ("annex", 1)):
        if format not in destination.facts.formats:
            most = min(most, without)
    return _LEAST_FIRST[most]


def _of_ring(ring: Ring | None, host: HostRecord, domain: str) -> int:
    if ring is None:
        return 1
    stage = _LEAST_FIRST.index(ring.stage)
    if ring.state is not State.RUNNING:
        return 0 if ring.state is State.ABORTED else min(stage, 1)
    chosen = bucket(domain) < ring.canaries.percent or set(host.labels) & set(ring.canaries.labels)
    return stage if chosen else {4: 3, 3: 1}.get(stage, 0)
