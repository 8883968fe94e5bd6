# SPDX-License-Identifier: GPL-2.0-or-later
"""The rollout: how far each ring of hosts is, and what the operators said of it. Pure."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from qmpfilter.cluster.counts import ByMode, read_by_mode, write_by_mode
from qmpfilter.cluster.form import Fields, dumped
from qmpfilter.errors import HostError, PolicyError
from qmpfilter.filter.policy import Mode

__all__ = [
    "EVERYONE",
    "STAGES",
    "Canaries",
    "Change",
    "Ring",
    "Rollout",
    "State",
    "Switch",
    "Thresholds",
    "bucket",
    "domain_uuid",
    "stage_after",
    "stage_before",
]

STAGES: Final = (Mode.OFF, Mode.OBSERVE, Mode.ANNEX, Mode.NATIVE)
"""The way of a ring."""

_STAGES: Final = tuple(stage.value for stage in STAGES)
_PERCENT: Final = 100
_MOST_HISTORY: Final = 200
# A name is part of a table on a terminal, and of an option's value.
_LONGEST_NAME: Final = 64


def stage_after(stage: Mode) -> Mode | None:
    """The next one; None for the last."""
    place = STAGES.index(stage) + 1
    return STAGES[place] if place < len(STAGES) else None


def stage_before(stage: Mode) -> Mode:
    """The one before; the first for the first."""
    return STAGES[max(STAGES.index(stage) - 1, 0)]


def domain_uuid(text: str) -> str:
    """A domain's uuid as records have it.

    :raises HostError: it is none
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise HostError(f"{text!r} is not a domain's uuid") from None


def bucket(domain: str) -> int:
    """The one of a hundred parts, 0 to 99, in which a domain is for ever: canaries of a percentage p are those of the
    parts below p, so that a higher one takes no domain out.

    :raises HostError: not a uuid
    """
    digest = hashlib.sha256(uuid.UUID(domain_uuid(domain)).bytes).digest()
    return int.from_bytes(digest[:8], "big") * _PERCENT >> 64


class State(StrEnum):
    """Of one ring."""

    RUNNING = "running"
    """Its stage holds."""
    PAUSED = "paused"
    """Nothing is edited until somebody resumes it; the stage stays."""
    ABORTED = "aborted"
    """Everything passes unread; once resumed, it begins at observe again."""


@dataclass(frozen=True, slots=True)
class Canaries:
    """Who has a ring's stage already; the others have the one before it.

    :param percent: of the domains
    :param labels: hosts that carry one of them, with all their domains
    """

    percent: int = _PERCENT
    labels: tuple[str, ...] = ()

    @property
    def everyone(self) -> bool:
        """There is nobody else."""
        return self.percent >= _PERCENT

    def include(self, labels: Iterable[str], domain: str | None) -> bool:
        """A host with these labels, or this domain, is among them; a domain that is not known is not."""
        if self.everyone or set(labels) & set(self.labels):
            return True
        return domain is not None and bucket(domain) < self.percent


EVERYONE: Final = Canaries()


@dataclass(frozen=True, slots=True)
class Ring:
    """Some of the hosts.

    :param why: of the state, empty while it runs
    :param by: who brought it to this stage or state
    :param at: when, UTC
    :param baseline: what was counted when its stage began, or when it was resumed
    """

    name: str
    stage: Mode = Mode.OFF
    state: State = State.RUNNING
    why: str = ""
    by: str = ""
    at: str = ""
    canaries: Canaries = EVERYONE
    baseline: ByMode = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What lets a ring go on, and what pauses it.

    :param least_migrations: that a ring has to see at a stage before the next
    :param most_failures: failed and in doubt; one more pauses it
    :param most_vetoes: the same of those that the verdict stopped
    """

    least_migrations: int = 10
    most_failures: int = 0
    most_vetoes: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the history."""

    at: str
    by: str
    what: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """All of it.

    :param serial: counted up with every change
    :param rings: in the order in which they go
    :param hosts: the most that single hosts get, whatever their ring has
    :param domains: the most that single domains get, by uuid
    :param history: the last changes, the newest last
    """

    serial: int
    rings: tuple[Ring, ...]
    thresholds: Thresholds = Thresholds()
    hosts: Mapping[str, Mode] = field(default_factory=dict)
    domains: Mapping[str, Mode] = field(default_factory=dict)
    history: tuple[Change, ...] = ()

    def ring(self, name: str) -> Ring:
        """One by its name.

        :raises PolicyError: there is none
        """
        for ring in self.rings:
            if ring.name == name:
                return ring
        raise PolicyError(f"the rollout has no ring {name!r}; it has {', '.join(ring.name for ring in self.rings)}")

    def to_json(self) -> bytes:
        """As it is stored."""
        return dumped({
            "serial": self.serial,
            "rings": [_write_ring(ring) for ring in self.rings],
            "thresholds": {name: getattr(self.thresholds, name) for name in Thresholds.__slots__},
            "hosts": {name: mode.value for name, mode in self.hosts.items()},
            "domains": {name: mode.value for name, mode in self.domains.items()},
            "history": [
                {"at": one.at, "by": one.by, "what": one.what} for one in self.history[-_MOST_HISTORY:]
            ],
        })  # fmt: skip

    @classmethod
    def from_json(cls, where: str, data: bytes) -> Rollout:
        """What :meth:`to_json` wrote.

        :raises HostError: anything else; begins with `where`
        """
        fields = Fields.of_record(where, data)
        rollout = cls(
            serial=fields.count("serial"),
            rings=fields.rows("rings", _read_ring),
            thresholds=_read_thresholds(fields.fields("thresholds")),
            hosts=fields.each("hosts", _read_stage),
            domains=fields.each("domains", _read_stage),
            history=fields.rows("history", _read_change),
        )
        fields.end()
        try:
            check_rings([ring.name for ring in rollout.rings])
        except PolicyError as error:
            raise HostError(f"{where}: {error}") from None
        for domain in rollout.domains:
            if domain_uuid(domain) != domain:
                raise HostError(f"{where}: domains: {domain!r} is not written as uuids are")
        return rollout


@dataclass(frozen=True, slots=True)
class Switch:
    """The cluster's kill switch: while it is in the store, everything passes as it is, at every host."""

    by: str
    at: str

    def to_json(self) -> bytes:
        """As it is stored."""
        return dumped({"by": self.by, "at": self.at})

    @classmethod
    def from_json(cls, where: str, data: bytes) -> Switch:
        """What :meth:`to_json` wrote. Whoever cannot read it takes it for on all the same.

        :raises HostError: anything else; begins with `where`
        """
        fields = Fields.of_record(where, data)
        switch = cls(fields.text("by"), fields.text("at"))
        fields.end()
        return switch


def check_rings(names: Iterable[str]) -> None:
    """They can be the rings of a rollout.

    :raises PolicyError: there is none, one comes twice, or has no name of one word
    """
    names = list(names)
    if not names:
        raise PolicyError("a rollout needs at least one ring")
    for name in names:
        if not name.isprintable() or not name.strip() or "," in name or " " in name or len(name) > _LONGEST_NAME:
            raise PolicyError(f"{name!r} cannot be the name of a ring: expected one word")
        if names.count(name) > 1:
            raise PolicyError(f"ring {name!r} comes twice")


def _write_ring(ring: Ring) -> dict[str, Any]:
    return {
        "name": ring.name,
        "stage": ring.stage.value,
        "state": ring.state.value,
        "why": ring.why,
        "by": ring.by,
        "at": ring.at,
        "canaries": {"percent": ring.canaries.percent, "labels": list(ring.canaries.labels)},
        "baseline": write_by_mode(ring.baseline),
    }


def _read_ring(fields: Fields) -> Ring:
    canaries = fields.fields("canaries")
    ring = Ring(
        name=fields.text("name"),
        stage=_read_stage(fields, "stage"),
        state=fields.choice("state", State, tuple(state.value for state in State)),
        why=fields.text("why"),
        by=fields.text("by"),
        at=fields.text("at"),
        canaries=Canaries(canaries.count("percent", _PERCENT), canaries.texts("labels")),
        baseline=read_by_mode(fields, "baseline"),
    )
    canaries.end()
    fields.end()
    return ring


def _read_stage(fields: Fields, key: str) -> Mode:
    return fields.choice(key, Mode, _STAGES)


def _read_thresholds(fields: Fields) -> Thresholds:
    thresholds = Thresholds(*(fields.count(name) for name in Thresholds.__slots__))
    fields.end()
    return thresholds


def _read_change(fields: Fields) -> Change:
    change = Change(fields.text("at"), fields.text("by"), fields.text("what"))
    fields.end()
    return change
