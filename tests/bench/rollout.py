# SPDX-License-Identifier: GPL-2.0-or-later
"""A rollout over a thousand hosts and a hundred thousand migrations, with their records in a real etcd.

Time is left out: hosts take turns as fast as the store answers, each with twenty migrations, while an operator
promotes, switches off and on, and resumes a ring that failed for a while. In its turn a host does what its daemon
does all the time: it asks for changes, reads them, says that it has, and counts. Printed are the requests and bytes
of that, what they cost etcd, and how long a decision takes. It must hold that

- each decision is what a table made anew allows, of the rollout and the switch that its host knew;
- a host knew in its turn whatever had been written before the turn began, so that nothing is edited after `off`;
- each promotion came after so many migrations, and no more failures, than the thresholds ask for;
- what ended is what was counted in the store.
"""

from __future__ import annotations

import multiprocessing
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from qmpfilter.cluster import changes
from qmpfilter.cluster.address import open_store
from qmpfilter.cluster.board import Board, signed
from qmpfilter.cluster.counts import Counts, Sum, since
from qmpfilter.cluster.rollout import Canaries, Rollout, State, stage_after
from qmpfilter.errors import PolicyError
from qmpfilter.filter.policy import Mode
from tests.bench.rollout_hosts import FAILING, RINGS, SECONDS, Share, Told, take_turns
from tests.helpers.etcd import Certificates, Etcd

__all__ = ["run"]

_MIGRATIONS: Final = 100_000
_TURNS: Final = 5
_PROCESSES: Final = 2
_ASK_SECONDS: Final = 2.0
_ACT_EVERY: Final = 2500
"""Migrations between two acts of the operator."""
_OFF_AT, _ON_AT = 0.5, 0.6
_LEAST: Final = 100
_FIRST: Final = Canaries(percent=20, labels=("gold",))
_WANTED_DECISION: Final = 1e-3
_ANSWERED: Final = re.compile(r'grpc_server_handled_total\{grpc_code="OK",grpc_method="(\w+)"')


class Written(NamedTuple):
    """What the operator did.

    :param began: before it was written
    :param done: when it was
    :param serial: of the rollout then
    :param off: what the switch is then
    """

    began: float
    done: float
    serial: int
    off: bool


class Load(NamedTuple):
    """What the turns asked of etcd, as it tells itself.

    :param seconds: that they took
    :param processor: seconds that etcd used
    :param requests: by their kind
    :param taken: bytes
    :param given: bytes
    """

    seconds: float
    processor: float
    requests: Counter[str]
    taken: float
    given: float


class Operator:
    """Brings all rings to the last stage, one act at a time."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._off = False
        self._first = True
        self.written: list[Written] = []
        self.promoted = self.refused = self.paused = 0
        self.wrong: list[str] = []

    def start(self) -> None:
        """All rings, of which the first observes."""

        def starting(rollout: Rollout | None, counts: Sum) -> Rollout:
            return changes.set_values(
                changes.start(rollout, list(RINGS), counts.whole, signed("operator")),
                changes.Settings(least_migrations=_LEAST),
                signed("operator"),
            )

        self._change(starting)

    def act(self, share: float, fail: Callable[[bool], None]) -> None:
        """Do the next thing.

        :param share: of the migrations that are over
        :param fail: lets a ring fail, or no longer
        """
        if _OFF_AT <= share < _ON_AT and not self._off:
            self._switch(True)
        elif share >= _ON_AT and self._off:
            self._switch(False)
        rollout = self._board.rollout()
        assert rollout is not None
        stopped = [ring.name for ring in rollout.rings if ring.state is State.PAUSED]
        if stopped:
            fail(False)
            self.paused += 1
            self._change(lambda old, counts: changes.resume(_some(old), stopped, counts.whole, signed("operator")))
        elif some := [ring.name for ring in rollout.rings if not ring.canaries.everyone]:
            everyone = changes.Settings(ring=some[0], percent=100)
            self._change(lambda old, _: changes.set_values(_some(old), everyone, signed("operator")))
        elif self._first and rollout.ring(FAILING).stage is Mode.ANNEX:
            self._first = False
            fail(True)
        else:
            for name in RINGS:
                if self._promoted(name):
                    break

    def final(self) -> tuple[Rollout, Sum]:
        """How it ended."""
        return _some(self._board.rollout()), self._board.counts()

    def _promoted(self, name: str) -> bool:
        before: list[Rollout] = []

        def promoting(old: Rollout | None, counts: Sum) -> Rollout:
            before[:] = [_some(old)]
            following = stage_after(before[0].ring(name).stage)
            canaries = _FIRST if (name, following) == (next(iter(RINGS)), Mode.ANNEX) else Canaries()
            return changes.promote(before[0], name, counts.whole, signed("operator"), canaries)

        try:
            after = self._change(promoting)
        except PolicyError:
            self.refused += 1
            return False
        self.promoted += 1
        old, new = before[0].ring(name), after.ring(name)
        seen = since(old.baseline, new.baseline)
        done = seen.get(old.stage, Counts()).migrations
        if old.stage is not Mode.OFF and (done < _LEAST or any(counts.failures for counts in seen.values())):
            self.wrong.append(f"{name} was promoted from {old.stage} after {done} migrations: {seen}")
        return True

    def _change(self, how: Callable[[Rollout | None, Sum], Rollout | None]) -> Rollout:
        began = time.monotonic()
        rollout = _some(self._board.change(how))
        self.written.append(Written(began, time.monotonic(), rollout.serial, self._off))
        return rollout

    def _switch(self, off: bool) -> None:
        began, serial = time.monotonic(), self.written[-1].serial
        if off:
            self._board.switch_off(signed("operator"))
        else:
            self._board.switch_on()
        self._off = off
        self.written.append(Written(began, time.monotonic(), serial, off))


def run() -> bool:
    """Print the figures; True if everything was right, and decisions are as quick as promised."""
    print(f"a rollout over {sum(RINGS.values())} hosts, {_MIGRATIONS} migrations, records in etcd:")
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        with Etcd(base / "etcd", Certificates(base / "certificates")) as server:
            operator = Operator(Board(open_store(server.address, server.access)))
            operator.start()
            tolds, load = _simulated(server, operator)
            return _print(tolds, operator, load)


def _simulated(server: Etcd, operator: Operator) -> tuple[list[Told], Load]:
    spawn = multiprocessing.get_context("spawn")
    start, done, failing = spawn.Barrier(_PROCESSES + 1), spawn.Queue(), spawn.Event()
    each = _MIGRATIONS // sum(RINGS.values()) // _TURNS
    workers = [
        spawn.Process(
            target=take_turns,
            daemon=True,
            args=(server.address, server.access, Share(part, _PROCESSES, _TURNS, each), start, done, failing),
        )
        for part in range(_PROCESSES)
    ]
    for worker in workers:
        worker.start()
    try:
        start.wait(SECONDS)
        begin, processor, before = time.monotonic(), server.processor_seconds(), server.metrics()
        tolds: list[Told] = []
        over = acted = 0
        while len(tolds) < _PROCESSES:
            what = done.get(timeout=SECONDS)
            if isinstance(what, Told):
                tolds.append(what)
                continue
            over += what
            if over - acted >= _ACT_EVERY:
                acted = over
                operator.act(over / _MIGRATIONS, lambda fail: failing.set() if fail else failing.clear())
        seconds, processor = time.monotonic() - begin, server.processor_seconds() - processor
        return tolds, _load(seconds, processor, before, server.metrics())
    finally:
        for worker in workers:
            worker.join(1.0)
            worker.kill()


def _load(seconds: float, processor: float, before: Mapping[str, float], after: Mapping[str, float]) -> Load:
    new = {name: value - before.get(name, 0.0) for name, value in after.items()}
    kinds = Counter[str]()
    for name, count in new.items():
        if (found := _ANSWERED.match(name)) and count:
            kinds[found[1]] += round(count)
    taken, given = (new[f"etcd_network_client_grpc_{way}_bytes_total"] for way in ("received", "sent"))
    return Load(seconds, processor, kinds, taken, given)


def _print(tolds: list[Told], operator: Operator, load: Load) -> bool:
    asked, idle = load.requests.total(), sum(RINGS.values()) / _ASK_SECONDS
    kinds = ", ".join(f"{count} {kind}" for kind, count in load.requests.most_common())
    took = statistics.quantiles((one for told in tolds for one in told.watches), n=100)
    print(f"  store     {asked} requests ({kinds}) in {load.seconds:.0f} s, {asked / load.seconds:.0f} a second")
    print(f"            {load.taken / 1e6:.1f} MB taken, {load.given / 1e6:.1f} MB given")
    print(f"            to ask takes {took[49] * 1e3:.1f} ms, of a hundred the slowest {took[98] * 1e3:.1f} ms")
    each = load.processor / asked
    print(f"            a request costs {each * 1e3:.2f} ms of etcd's processor")
    print(
        f"            who only asks, every {_ASK_SECONDS:g} s: {idle:.0f} a second, {idle * each:.0%} of a processor"
    )
    decisions = [one for told in tolds for one in told.decisions]
    parts = statistics.quantiles(decisions, n=1000)
    print(
        f"  decision  {parts[499] * 1e6:.0f} us, of a hundred the slowest {parts[989] * 1e6:.0f} us, "
        f"of a thousand {parts[998] * 1e6:.0f} us"
    )
    rollout, counts = operator.final()
    modes = Counter[str]()
    for told in tolds:
        modes.update(told.modes)
    print(
        f"  operator  {operator.promoted} promotions, {operator.refused} refused, {operator.paused} pauses by hosts"
    )
    print(f"            rings are at last: {', '.join(f'{ring.name} {ring.stage}' for ring in rollout.rings)}")
    print(f"  modes     {', '.join(f'{count} {mode}' for mode, count in modes.most_common())}")
    late, after_off = _late(tolds, operator.written)
    faults = [*operator.wrong, *(one for told in tolds for one in told.wrong), *late, *_miscounted(tolds, counts)]
    print(f"  right     {len(decisions)} decisions, {after_off} of them after off")
    for fault in faults[:10]:
        print(f"  WRONG     {fault}")
    good = not faults and len(decisions) == _MIGRATIONS and operator.paused > 0 and after_off > 0
    return good and parts[499] <= _WANTED_DECISION


def _late(tolds: list[Told], written: list[Written]) -> tuple[list[str], int]:
    """Turns in which a host did not know what had been written, and how many migrations were switched off."""
    wrong, switched = [], 0
    for told in tolds:
        for turn in told.turns:
            done = [one for one in written if one.done <= turn.began]
            serial = max(one.serial for one in done)
            if turn.serial < serial:
                wrong.append(f"a turn knew rollout {turn.serial}, and {serial} had been written")
            # The one that a turn may have overlapped with is not counted.
            still = all(one.began > turn.ended or one.done <= turn.began for one in written)
            if done[-1].off and still:
                switched += turn.migrations
                if not turn.off or turn.edited:
                    wrong.append(f"{turn.edited} migrations were edited after off")
    return wrong, switched


def _miscounted(tolds: list[Told], counts: Sum) -> list[str]:
    ended = Counter[tuple[str, Mode, bool]]()
    for told in tolds:
        ended.update(told.ended)
    stored = Counter[tuple[str, Mode, bool]]()
    for ring, by_mode in counts.whole.items():
        for mode, count in by_mode.items():
            stored[ring, mode, True] = count.migrations
            stored[ring, mode, False] = count.failures
    differ = [key for key in ended | stored if ended[key] != stored[key]]
    return [f"{key}: {ended[key]} ended, {stored[key]} are counted" for key in differ]


def _some(rollout: Rollout | None) -> Rollout:
    assert rollout is not None
    return rollout
