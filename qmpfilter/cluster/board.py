# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of the cluster in its store: which key has what, and how a change is made without losing another's.

=================== ====================================================================================
key                 holds
=================== ====================================================================================
control/rollout     :class:`~qmpfilter.cluster.rollout.Rollout`
control/off         :class:`~qmpfilter.cluster.rollout.Switch`, while everything passes as it is
hosts/NAME          :class:`~qmpfilter.cluster.host.HostRecord`, for as long as the host's lease
seen/NAME           :class:`~qmpfilter.cluster.host.Seen`, for as long as the host's lease
names/NAME          which run of a daemon has that name, for as long as the host's lease
tallies/NAME        :class:`~qmpfilter.cluster.counts.Tally`, for ever
=================== ====================================================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from qmpfilter.cluster.changes import By
from qmpfilter.cluster.counts import Sum, Tally, summed
from qmpfilter.cluster.host import HostRecord, Seen
from qmpfilter.cluster.rollout import Rollout, Switch
from qmpfilter.cluster.store import Entry, Lease, Store
from qmpfilter.errors import ChangedError, HostError

__all__ = ["CONTROL", "HOSTS", "Board", "Listed", "signed"]

CONTROL: Final = "control"
"""Below it are the decisions that every host follows."""
HOSTS: Final = "hosts"
"""Below it are the hosts that live."""

_ROLLOUT: Final = f"{CONTROL}/rollout"
_OFF: Final = f"{CONTROL}/off"
_SEEN: Final = "seen"
_NAMES: Final = "names"
_TALLIES: Final = "tallies"
# Everybody who changes the rollout at once is one try; somebody always gets through.
_TRIES: Final = 100


def signed(who: str) -> By:
    """Who changes something, at this moment."""
    return By(who, datetime.now(UTC).isoformat(timespec="seconds"))


class Listed(NamedTuple):
    """Records of all hosts.

    :param good: by host
    :param damaged: sentences about those that cannot be read
    """

    good: dict[str, HostRecord]
    damaged: tuple[str, ...]


class Board:
    """Reads and writes records.

    Every method raises :class:`~qmpfilter.errors.StoreAwayError` if the store cannot be reached, and
    :class:`~qmpfilter.errors.HostError` for a record that cannot be read.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._read: dict[str, tuple[str, HostRecord]] = {}

    # --- decisions -----------------------------------------------------------------------------

    def rollout(self) -> Rollout | None:
        """The rollout; None if none has begun."""
        entry = self.store.get(_ROLLOUT)
        return None if entry is None else Rollout.from_json(_ROLLOUT, entry.data)

    def change(self, how: Callable[[Rollout | None, Sum], Rollout | None]) -> Rollout | None:
        """Change the rollout.

        :param how: gives the next one, or None to leave it; is asked again whenever somebody else was first
        :returns: what was written, None if nothing
        """
        for _ in range(_TRIES):
            entry = self.store.get(_ROLLOUT)
            # After the rollout: what is counted in between counts for the stage that begins.
            new = how(None if entry is None else Rollout.from_json(_ROLLOUT, entry.data), self.counts())
            if new is None:
                return None
            with contextlib.suppress(ChangedError):
                self.store.put(_ROLLOUT, new.to_json(), unless_changed=None if entry is None else entry.revision)
                return new
        raise HostError("the rollout is being changed all the time: try again")

    def switch(self) -> Switch | None:
        """The kill switch; one that cannot be read is on."""
        entry = self.store.get(_OFF)
        if entry is None:
            return None
        try:
            return Switch.from_json(_OFF, entry.data)
        except HostError:
            return Switch("somebody whose record is damaged", "")

    def switch_off(self, by: By) -> None:
        """Everything passes as it is, from now on."""
        self.store.put_always(_OFF, Switch(by.who, by.at).to_json())

    def switch_on(self) -> None:
        """The end of that."""
        for _ in range(_TRIES):
            entry = self.store.get(_OFF)
            if entry is None:
                return
            with contextlib.suppress(ChangedError):
                self.store.delete(_OFF, unless_changed=entry.revision)
                return
        raise HostError("the kill switch is being changed all the time: try again")

    # --- hosts ---------------------------------------------------------------------------------

    def hosts(self) -> Listed:
        """Those that live."""
        read: dict[str, tuple[str, HostRecord]] = {}
        damaged: list[str] = []
        for entry in self.store.entries(HOSTS):
            try:
                # Where a thousand hosts live, one that comes or goes is not worth reading all the others again.
                revision, record = self._read.get(entry.key, ("", None))
                if record is None or revision != entry.revision:
                    record = _host(entry)
                read[entry.key] = (entry.revision, record)
            except HostError as error:
                damaged.append(str(error))
        self._read = read
        return Listed({record.name: record for _, record in read.values()}, tuple(damaged))

    def publish(self, record: HostRecord, lease: Lease) -> None:
        """A host's own."""
        self.store.put_always(f"{HOSTS}/{record.name}", record.to_json(), lease)

    def seen(self) -> dict[str, Seen]:
        """What each host has taken in; nothing of one whose record cannot be read."""
        found: dict[str, Seen] = {}
        for entry in self.store.entries(_SEEN):
            with contextlib.suppress(HostError):
                found[_name(entry)] = Seen.from_json(entry.key, entry.data)
        return found

    def say_seen(self, name: str, seen: Seen, lease: Lease) -> None:
        """A host's own."""
        self.store.put_always(f"{_SEEN}/{name}", seen.to_json(), lease)

    def signature(self, name: str) -> str:
        """Whose that name is; empty if nobody's."""
        entry = self.store.get(f"{_NAMES}/{name}")
        return "" if entry is None else entry.data.decode(errors="replace")

    def sign(self, name: str, signature: str, lease: Lease) -> None:
        """A host's own."""
        self.store.put_always(f"{_NAMES}/{name}", signature.encode(), lease)

    # --- counts --------------------------------------------------------------------------------

    def counts(self) -> Sum:
        """What all hosts counted."""
        tallies: list[Tally] = []
        damaged: list[str] = []
        for entry in self.store.entries(_TALLIES):
            try:
                tallies.append(Tally.from_json(entry.key, entry.data))
            except HostError as error:
                damaged.append(str(error))
        return Sum(summed(tally.totals for tally in tallies), tuple(damaged))

    def tally(self, name: str) -> Tally | None:
        """One host's; None if there is none."""
        entry = self.store.get(f"{_TALLIES}/{name}")
        return None if entry is None else Tally.from_json(entry.key, entry.data)

    def say_tally(self, name: str, tally: Tally) -> None:
        """A host's own."""
        self.store.put_always(f"{_TALLIES}/{name}", tally.to_json(with_sessions=False))


def _host(entry: Entry) -> HostRecord:
    record = HostRecord.from_json(entry.key, entry.data)
    if record.name != _name(entry):
        raise HostError(f"{entry.key}: the record of host {record.name!r}")
    return record


def _name(entry: Entry) -> str:
    return entry.key.partition("/")[2]
