# SPDX-License-Identifier: GPL-2.0-or-later
"""How migrations ended, by ring and by the mode they had. Pure.

Every host keeps a tally of all that it saw, which only grows, and stores it whole under a key of its own: writing it
once more changes nothing, and no two hosts write the same. What happened since a ring came to its stage is the sum of
all tallies less what that sum was then (:attr:`~qmpfilter.cluster.rollout.Ring.baseline`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from qmpfilter.cluster.form import Fields, dumped
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import Mode
from qmpfilter.relay.session import Outcome, Phase

__all__ = [
    "ByMode",
    "Counts",
    "Sum",
    "Tally",
    "Totals",
    "counted",
    "read_by_mode",
    "since",
    "summed",
    "worse",
    "write_by_mode",
]

_MOST_NAMES: Final = 1000


@dataclass(frozen=True, slots=True)
class Counts:
    """Migrations that ended.

    :param migrations: whose guest runs at the destination, as far as that was told
    :param vetoed: stopped because of the verdict; the guest is at the source
    :param failed: stopped by anything else but the source; the guest is at the source
    :param in_doubt: cut when the destination could have started the guest
    """

    migrations: int = 0
    vetoed: int = 0
    failed: int = 0
    in_doubt: int = 0

    @property
    def failures(self) -> int:
        """Those that somebody has to look at."""
        return self.failed + self.in_doubt

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in _NAMES))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) - getattr(other, name) for name in _NAMES))

    @property
    def is_sum(self) -> bool:
        """None is below 0."""
        return all(getattr(self, name) >= 0 for name in _NAMES)


_NAMES: Final = tuple(one.name for one in fields(Counts))

ByMode = Mapping[Mode, Counts]
Totals = Mapping[str, ByMode]
"""By ring."""

# What was ended by hand, at the source (CANCELLED) or here (STOPPED), says nothing of a stage.
_COUNTED: Final = {
    Outcome.COMPLETED: Counts(migrations=1),
    Outcome.SENT: Counts(migrations=1),
    Outcome.VETOED: Counts(vetoed=1),
    Outcome.REFUSED: Counts(failed=1),
    Outcome.FAILED: Counts(failed=1),
    Outcome.IN_DOUBT: Counts(in_doubt=1),
}

_SOURCE_CAME: Final = ("connected", Phase.STREAMING.value, Phase.COMMITTED.value)


def counted(report: Mapping[str, Any]) -> tuple[Mode, Counts] | None:
    """What a session's report adds, and to which mode; None if nothing, or if it does not tell.

    One that failed before a source came was no migration.
    """
    try:
        outcome = Outcome(report["outcome"])
        mode = Mode.OFF if report.get("switched_off") else Mode(report["mode"])
    except (KeyError, ValueError):
        return None
    if outcome not in _COUNTED or (outcome is Outcome.FAILED and not _began(report)):
        return None
    return mode, _COUNTED[outcome]


def _began(report: Mapping[str, Any]) -> bool:
    """A source came; it did where the report does not tell."""
    # A worker that died left its phases, and of channels what the daemon had heard.
    moments = report.get("moments", {})
    return bool(report.get("channels", True)) or any(moment in moments for moment in _SOURCE_CAME)


@dataclass(frozen=True, slots=True)
class Tally:
    """What one host counted since it is in the cluster.

    :param sessions: the last that were counted, so that none is counted twice; the host's own business
    """

    totals: Totals = field(default_factory=dict)
    sessions: tuple[str, ...] = ()

    def add(self, session: str, rings: Iterable[str], mode: Mode, counts: Counts) -> Tally:
        """With one session more; itself if that was counted already."""
        if session in self.sessions:
            return self
        return Tally(
            summed([self.totals, {ring: {mode: counts} for ring in rings}]),
            (*self.sessions, session)[-_MOST_NAMES:],
        )

    def to_json(self, *, with_sessions: bool) -> bytes:
        """As it is stored, or, with the sessions, as the host keeps it."""
        totals = {ring: write_by_mode(by_mode) for ring, by_mode in self.totals.items()}
        return dumped({"totals": totals, "sessions": list(self.sessions) if with_sessions else []})

    @classmethod
    def from_json(cls, where: str, data: bytes) -> Tally:
        """What :meth:`to_json` wrote.

        :raises HostError: anything else; begins with `where`
        """
        record = Fields.of_record(where, data)
        tally = cls(record.each("totals", read_by_mode), record.texts("sessions"))
        record.end()
        return tally


@dataclass(frozen=True, slots=True)
class Sum:
    """What all hosts counted.

    :param readable: the sum of the tallies that can be read
    :param damaged: sentences about the others
    """

    readable: Totals = field(default_factory=dict)
    damaged: tuple[str, ...] = ()

    @property
    def whole(self) -> Totals:
        """The sum of all of them.

        :raises HostError: one cannot be read
        """
        if self.damaged:
            raise HostError(f"what the hosts counted cannot be told: {self.damaged[0]}")
        return self.readable


def worse(old: Totals, new: Totals) -> list[str]:
    """The rings of which one tally tells more failures or vetoes than before."""

    def bad(totals: Totals, ring: str) -> int:
        return sum(counts.failures + counts.vetoed for counts in totals.get(ring, {}).values())

    return [ring for ring in new if bad(new, ring) > bad(old, ring)]


def summed(many: Iterable[Totals]) -> Totals:
    """All of them together."""
    whole: dict[str, dict[Mode, Counts]] = {}
    for totals in many:
        for ring, by_mode in totals.items():
            inner = whole.setdefault(ring, {})
            for mode, counts in by_mode.items():
                inner[mode] = inner.get(mode, Counts()) + counts
    return whole


def since(baseline: ByMode, total: ByMode) -> ByMode:
    """What came to a ring's counts; below 0 where tallies are gone that were there."""
    return {mode: total.get(mode, Counts()) - baseline.get(mode, Counts()) for mode in {**baseline, **total}}


def write_by_mode(by_mode: ByMode) -> dict[str, dict[str, int]]:
    """For a record."""
    return {mode.value: {name: getattr(counts, name) for name in _NAMES} for mode, counts in by_mode.items()}


def read_by_mode(record: Fields, key: str) -> ByMode:
    """What :func:`write_by_mode` wrote.

    :raises HostError: anything else
    """
    inner = record.fields(key)
    found = {mode: _read(row) for mode in Mode if (row := inner.optional(mode.value)) is not None}
    inner.end()
    return found


def _read(row: Fields) -> Counts:
    counts = Counts(*(row.count(name) for name in _NAMES))
    row.end()
    return counts
