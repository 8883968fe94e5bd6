# SPDX-License-Identifier: GPL-2.0-or-later
"""This host as a member of its cluster: tells of itself, follows the rollout and the kill switch, and counts.

Threads speak with the store, because its calls block: one follows the kill switch and the rollout and gives signs of
life, another reads the other hosts' records and remembers them, which takes long where there are a thousand. What
they learn is one frozen object that is replaced. A migration that begins asks nobody: it is decided by what is known
at that moment.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from qmpfilter.cluster.board import CONTROL, HOSTS, Board, signed
from qmpfilter.cluster.changes import pause_failing
from qmpfilter.cluster.counts import Sum, Tally, counted, summed, worse
from qmpfilter.cluster.decide import Decision, Situation, decide
from qmpfilter.cluster.host import HostRecord, Seen
from qmpfilter.cluster.rollout import Rollout
from qmpfilter.cluster.store import Lease
from qmpfilter.daemon.config import Cluster
from qmpfilter.daemon.known import Known, KnownFile
from qmpfilter.daemon.ownname import OwnName
from qmpfilter.daemon.ownrecord import look_here
from qmpfilter.daemon.switch import ClustersSwitch, KillSwitch
from qmpfilter.errors import ChangedError, HostError, StoreAwayError
from qmpfilter.filter.policy import Mode
from qmpfilter.saveimage.outfile import OutputFile
from qmpfilter.verdict.facts import HostFacts

__all__ = ["Member"]

_log: Final = logging.getLogger(__name__)

# The kill switch has to be everywhere within 5 s, also where a watch says nothing.
_WATCH_SECONDS: Final = 2.0
_AGAIN_SECONDS: Final = 1.0
_HANGS_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 60.0
_SUM_SECONDS: Final = 60.0
_BEATS: Final = 3
"""Signs of life for each lease."""
_END_SECONDS: Final = 10.0


class Member:
    """This host in its cluster.

    :param settings: what it is there
    :param board: the cluster's records
    :param directory: where what it knows and counted is kept
    :param switch: this host's kill switch
    :raises HostError: the directory cannot be used
    """

    def __init__(self, settings: Cluster, board: Board, directory: Path, switch: KillSwitch) -> None:
        self._settings = settings
        self._board = board
        self._switch = ClustersSwitch(switch)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"{directory}: {error.strerror or error}") from error
        self._known_file = KnownFile(directory / "known.json")
        self._tally_file = directory / "tally.json"
        self.known, age = self._remembered()
        self._heard = time.monotonic() - age
        self._tally, self._tally_is_whole = self._kept_tally()
        self._tally_said: Tally | None = None
        self._tally_held = False
        self._rings: dict[str, str] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._changed = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("cluster", self._run), ("cluster-hosts", self._run_hosts))
        ]
        # --- the threads' own ---
        self._away = ""
        self._remembered_known = self.known
        self._fallen = False
        self._lease: Lease | None = None
        self._own = OwnName(board, settings.name, settings.lease)
        self._shared = ""
        self._found: HostRecord | None = None
        self._record: HostRecord | None = None
        self._seen: Seen | None = None
        self._cursors: dict[str, str | None] = {}
        self._beat_at = self._look_at = self._sum_at = -math.inf

    # --- from the daemon's thread --------------------------------------------------------------

    def start(self) -> None:
        """Follow what was known last, and then the store."""
        self._follow_switch()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Say farewell, as far as the store can be reached."""
        self._ending.set()
        self._changed.set()
        for thread in self._threads:
            thread.join(_END_SECONDS)
        self._board.store.close()

    def decide(
        self,
        destination: str,
        *,
        domain: str | None = None,
        off: bool = False,
        configured: Mode | None = None,
        asked: Mode | None = None,
        wished: Mode | None = None,
    ) -> tuple[Decision, HostFacts | None]:
        """What is done to a migration from here, and what is known of its destination, None if nothing.

        :param destination: name or address of the host
        :param off: this host's kill switch is on
        """
        known = self.known
        to = known.host_at(destination)
        decision = decide(
            Situation(
                rollout=known.rollout,
                source=self._record or known.hosts.get(self._settings.name),
                destination=to,
                domain=domain,
                off=_off(known, off),
                stale=self._stale(),
                configured=configured,
                asked=asked,
                wished=wished,
            )
        )
        return decision, None if to is None else to.facts

    def began(self, session: str, destination: str) -> None:
        """A migration to a host has begun."""
        if (to := self.known.host_at(destination)) is not None:
            self._rings[session] = to.ring

    def count(self, report: Mapping[str, Any], destination: str) -> None:
        """A session has ended: it is counted for the rings of both hosts, durably when this returns.

        :param destination: where it went, if its beginning was not told
        """
        name = str(report.get("session", ""))
        ring = self._rings.pop(name, None)
        if ring is None and (to := self.known.host_at(destination)) is not None:
            ring = to.ring
        if (what := counted(report)) is None:
            return
        with self._lock:
            new = self._tally.add(name, {self._settings.ring, ring or self._settings.ring}, *what)
            if new is self._tally:
                return
            self._tally = new
            try:
                # Until the store was asked for what is missing, a file would pass for all of it.
                if self._tally_is_whole:
                    self._write_tally(new)
            except HostError as error:
                _log.error("cluster: what was counted is kept in memory only: %s", error)

    def as_json(self) -> dict[str, Any]:
        """What the daemon's status tells."""
        known = self.known
        ring = None
        if known.rollout is not None:
            ring = next((one for one in known.rollout.rings if one.name == self._settings.ring), None)
        return {
            "store": self._settings.store,
            "name": self._settings.name,
            "ring": self._settings.ring,
            "stage": None if ring is None else ring.stage.value,
            "state": None if ring is None else ring.state.value,
            "away": self._away,
            "stale": self._stale(),
            "age": None if math.isinf(self.age) else round(self.age, 1),
            "hosts": len(known.hosts),
            "ailing": "" if self._record is None else self._record.ailing,
            "off": self.off_for_all,
        }

    @property
    def age(self) -> float:
        """Seconds since the store was heard; infinite if it never was."""
        return time.monotonic() - self._heard

    @property
    def fallen_back(self) -> bool:
        """What is known is too old or cannot be read, so that nothing is edited."""
        return bool(self._stale())

    @property
    def off_for_all(self) -> str:
        """Why everything passes at every host; empty if it does not."""
        return _off(self.known, False) or self._switch.unheard

    def _stale(self) -> str:
        age = self.age
        if math.isinf(age):
            return "the cluster's store was never reached"
        # A thread that hangs in a call hears of nothing either.
        late = self._settings.stale if self._away else self._settings.stale + _HANGS_SECONDS
        if age > late:
            return (
                f"the cluster's store is away for {age:.0f} s, and the configuration allows {self._settings.stale:g}"
            )
        return self.known.unreadable

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._round()
                self._say_away("")
            except StoreAwayError as error:
                self._say_away(str(error))
                self._ending.wait(_AGAIN_SECONDS)
            except HostError as error:
                _log.error("cluster: %s", error)
                self._ending.wait(_AGAIN_SECONDS)
            except Exception:
                # Whatever it is: the host must go on hearing of the kill switch.
                _log.exception("cluster")
                self._ending.wait(_AGAIN_SECONDS)
            self._follow_switch()
            self._say_fallen()
        if self._lease is not None:
            try:
                self._lease.end()
            except HostError as error:
                _log.warning("cluster: this host is listed until its lease runs out: %s", error)

    def _round(self) -> None:
        self._follow_control()
        self._look()
        if time.monotonic() >= self._beat_at:
            self._beat()
            self._beat_at = time.monotonic() + self._settings.lease / _BEATS
        self._say_seen()
        self._say_tally()

    def _follow_control(self) -> None:
        """The kill switch and the rollout, before all else."""
        first = CONTROL not in self._cursors
        seconds = 0.0 if first else max(0.0, min(_WATCH_SECONDS, self._beat_at - time.monotonic()))
        sight = self._board.store.watch(CONTROL, self._cursors.get(CONTROL), seconds)
        if sight.changed or first:
            self._replace(switch=self._board.switch())
            self._switch.heard = True
            self._follow_switch()
            try:
                self._replace(rollout=self._board.rollout(), unreadable="")
            except StoreAwayError:
                raise
            except HostError as error:
                if self.known.unreadable != str(error):
                    _log.error("cluster: nothing is edited: %s", error)
                self._replace(unreadable=str(error))
            self._cursors[CONTROL] = sight.cursor
        self._heard = time.monotonic()

    def _run_hosts(self) -> None:
        """Beside the other: what it reads and writes is long."""
        while not self._ending.is_set():
            try:
                self._follow_hosts()
            except StoreAwayError:
                # The other thread says so.
                pass
            except HostError as error:
                _log.error("cluster: %s", error)
            except Exception:
                _log.exception("cluster")
            self._remember()
            self._changed.wait(self._settings.lease / _BEATS)
            self._changed.clear()

    def _follow_hosts(self) -> None:
        sight = self._board.store.watch(HOSTS, self._cursors.get(HOSTS), 0.0)
        if sight.changed or HOSTS not in self._cursors:
            listed = self._board.hosts()
            for sentence in listed.damaged:
                _log.warning("cluster: %s", sentence)
            self._replace(hosts=listed.good)
            self._cursors[HOSTS] = sight.cursor

    def _look(self) -> None:
        """What this host is: looked for now and then."""
        if self._found is None or time.monotonic() >= self._look_at:
            self._found = look_here(self._settings)
            self._look_at = time.monotonic() + _LOOK_SECONDS
        ailing = "; ".join(filter(None, (self._switch.ailing, self._own.shared, self._found.ailing)))
        record = replace(self._found, ailing=ailing)
        if self._record is None or replace(record, when=self._record.when) != self._record:
            self._record = record
            self._beat_at = -math.inf
            if record.ailing:
                _log.warning("cluster: this host is not healthy, so nothing is edited here: %s", record.ailing)

    def _beat(self) -> None:
        """A sign of life, and the record with it whenever the lease is new or the record changed."""
        assert self._record is not None
        if self._lease is not None and not self._lease.keep_alive():
            _log.warning("cluster: this host was not listed for a while: its lease had run out")
            self._lease = None
        if self._lease is None:
            self._lease = self._board.store.lease(self._settings.lease)
            self._seen = None
        try:
            self._own.look(self._lease)
            self._say_shared()
            if self.known.hosts.get(self._settings.name) != self._record or self._seen is None:
                self._board.publish(self._record, self._lease)
        except ChangedError:
            self._lease = None
            raise

    def _say_shared(self) -> None:
        if self._own.shared:
            # What the other wrote over it goes with the other's lease.
            self._seen = None
        if bool(self._own.shared) != bool(self._shared):
            if self._own.shared:
                _log.error("cluster: %s; what is counted here is kept here until then", self._own.shared)
            else:
                _log.info("cluster: no other host is named %s any more", self._settings.name)
        self._shared = self._own.shared

    def _say_seen(self) -> None:
        known = self.known
        off = self._switch.holds(known.switch is not None)
        seen = Seen(0 if known.rollout is None else known.rollout.serial, off)
        if seen != self._seen and self._lease is not None:
            try:
                self._board.say_seen(self._settings.name, seen, self._lease)
            except ChangedError:
                self._lease = None
                raise
            self._seen = seen

    def _say_tally(self) -> None:
        """Publish what was counted, and pause what failed too often. Not done until both are.

        What two hosts of one name count has one place: each keeps its own until it has the place for itself.
        """
        shared, held = self._own.shared, self._own.doubted
        if held and not shared:
            return
        if not self._tally_is_whole:
            self._recall_tally()
        tally = self._tally
        # The other may have written over what was said before.
        self._tally_held |= held
        if tally is self._tally_said and (held or not self._tally_held):
            return
        if not held:
            self._board.say_tally(self._settings.name, tally)
        by = signed(f"host {self._settings.name}")
        # What failed before this daemon was started is no news that pauses anything where the sum cannot be told.
        before = self._tally_said or (tally if held else Tally())
        failed = worse(before.totals, tally.totals)

        def pausing(rollout: Rollout | None, counts: Sum) -> Rollout | None:
            if held:
                counts = replace(counts, damaged=(*counts.damaged, shared))
            return None if rollout is None else pause_failing(rollout, counts, by, failed)

        # Whoever counts a failure looks at once; at every success it would be much reading for nothing.
        if failed or time.monotonic() >= self._sum_at:
            paused = self._board.change(pausing)
            if paused is not None:
                _log.error("cluster: rollout: %s", paused.history[-1].what)
            self._sum_at = time.monotonic() + _SUM_SECONDS
        self._tally_said, self._tally_held = tally, held

    def _recall_tally(self) -> None:
        """This host has lost what it counted; the store has it, as far as it was told, or it has another's."""
        stored = None if self._own.shared else self._board.tally(self._settings.name)
        with self._lock:
            if stored is not None:
                self._tally = Tally(summed([stored.totals, self._tally.totals]), self._tally.sessions)
            self._write_tally(self._tally)
            self._tally_is_whole = True

    def _replace(self, **new: Any) -> None:
        with self._lock:
            known = replace(self.known, **new)
            if known == self.known:
                return
            self.known = known
        self._changed.set()

    def _remember(self) -> None:
        known, age = self.known, self.age
        try:
            if known is not self._remembered_known:
                self._known_file.write(known)
                self._remembered_known = known
        except HostError as error:
            _log.error("cluster: a restart will not remember: %s", error)
        else:
            if not math.isinf(age):
                self._known_file.heard(age)

    def _follow_switch(self) -> None:
        self._switch.follow(self.known.switch is not None)

    def _say_away(self, why: str) -> None:
        if bool(why) != bool(self._away):
            if why:
                left = self._settings.stale - self.age
                _log.warning("cluster: %s%s", why, f"; what was known goes on for {left:.0f} s" if left > 0 else "")
            else:
                _log.info("cluster: the store answers again")
        self._away = why

    def _say_fallen(self) -> None:
        stale = self._stale()
        if bool(stale) != self._fallen:
            if stale:
                _log.error("cluster: nothing is edited any more: %s", stale)
            else:
                _log.info("cluster: the rollout is followed")
        self._fallen = bool(stale)

    # --- files ---------------------------------------------------------------------------------

    def _remembered(self) -> tuple[Known, float]:
        try:
            return self._known_file.read()
        except HostError as error:
            _log.error("cluster: nothing is remembered: %s", error)
            return Known(), math.inf

    def _kept_tally(self) -> tuple[Tally, bool]:
        """What was counted, and whether that is all."""
        path = self._tally_file
        try:
            return Tally.from_json(str(path), path.read_bytes()), True
        except FileNotFoundError:
            return Tally(), False
        except (HostError, OSError) as error:
            _log.error("cluster: what was counted here is taken from the store: %s", error)
            return Tally(), False

    def _write_tally(self, tally: Tally) -> None:
        with OutputFile(str(self._tally_file)) as file:
            file.write(tally.to_json(with_sessions=True))
            file.commit()


def _off(known: Known, here: bool) -> str:
    if known.switch is not None:
        return f"all hosts were switched off by {known.switch.by} ({known.switch.at})"
    return "this host is switched off" if here else ""
