# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt tells of a domain while it happens.

Source: libvirt 11.3 include/libvirt/libvirt-domain.h (virDomainEventType and the types of its details).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from qmpfilter.libvirt import job

__all__ = ["Happening", "iteration", "job_completed", "lifecycle", "qemu_migration"]

_LIFECYCLE: Final = (
    ("defined", ("added", "updated", "renamed", "from a snapshot")),
    ("undefined", ("removed", "renamed")),
    ("started", ("booted", "migrated", "restored", "from a snapshot", "woken up", "recovered")),
    (
        "suspended",
        ("paused", "migrated", "I/O error", "watchdog", "restored", "from a snapshot", "API error", "postcopy",
         "postcopy failed"),
    ),
    ("resumed", ("unpaused", "migrated", "from a snapshot", "postcopy", "postcopy failed")),
    (
        "stopped",
        ("shut down", "destroyed", "crashed", "migrated", "saved", "failed", "from a snapshot", "recreated"),
    ),
    ("shutting down", ("finished", "guest", "host")),
    ("suspended by the guest", ("memory", "disk")),
    ("crashed", ("panicked", "crash loaded")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Happening:
    """One event.

    :param at: when it came, or, where QEMU says so, when it was
    :param uuid: of the domain
    :param what: in words
    :param job: of a job that has ended, libvirt's numbers
    """

    at: datetime
    name: str
    uuid: str
    what: str
    job: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"domain {self.name} ({self.uuid}): {self.what}"

    @property
    def ends_job(self) -> bool:
        """Nothing more is to come of a migration."""
        return bool(self.job)

    def as_json(self) -> dict[str, str]:
        """For a report."""
        return {"at": self.at.isoformat(timespec="milliseconds"), "what": self.what}


def lifecycle(name: str, uuid: str, event: int, detail: int) -> Happening:
    """A domain began, stopped, or changed."""
    what, details = _LIFECYCLE[event] if event < len(_LIFECYCLE) else (f"event {event}", ())
    how = details[detail] if detail < len(details) else str(detail)
    return Happening(_now(), name, uuid, f"{what} ({how})")


def iteration(name: str, uuid: str, number: int) -> Happening:
    """A migration goes through memory once more."""
    return Happening(_now(), name, uuid, f"migration iteration {number}")


def job_completed(name: str, uuid: str, stats: Mapping[str, Any]) -> Happening:
    """A job has ended, a migration among others."""
    told = job.as_json(stats)
    spans = {"in": told.get("time_elapsed"), "guest stopped for": told.get("downtime")}
    took = ", ".join(f"{what} {span} ms" for what, span in spans.items() if span is not None)
    how = "failed" if told.get("success") is False else "completed"
    return Happening(_now(), name, uuid, f"job {how}{f' {took}' if took else ''}", told or {"success": True})


def qemu_migration(name: str, uuid: str, seconds: int, micros: int, details: str | None) -> Happening:
    """QEMU's event MIGRATION."""
    try:
        status = str(json.loads(details or "")["status"])
    except (ValueError, TypeError, KeyError):
        status = "unknown"
    at = datetime.fromtimestamp(seconds + micros / 1e6, UTC)
    return Happening(at, name, uuid, f"QEMU's migration: {status}")


def _now() -> datetime:
    return datetime.now(UTC)
