# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``query-migrate`` tells, and what an event does.

Source: QEMU 10.2.2 qapi/migration.json (MigrationInfo, MigrationStats, MigrationStatus).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["COMPLETED", "MigrationInfo", "Moment"]

COMPLETED: Final = "completed"
"""The status of a guest that was given away, or has arrived."""
_OVER: Final = (COMPLETED, "failed", "cancelled")
_NOT_BEGUN: Final = ("", "none")
# The migration's own unit: a megabit is 10**6 bits (migration.c, migration_update_counters).
_BITS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class MigrationInfo:
    """One answer; what QEMU did not tell is 0 or empty.

    :param status: QEMU's word, empty where there is no migration
    :param error: why it failed
    :param blocked: reasons for which this guest cannot be migrated
    :param total: bytes of guest memory
    :param remaining: bytes of it that are still to be sent
    :param transferred: bytes that were sent
    :param rate: bytes sent in a second
    :param dirty_rate: bytes of memory that the guest changes in a second
    :param downtime: milliseconds; while the migration goes on, what is expected
    :param total_time: milliseconds from the beginning
    :param setup_time: milliseconds before the first page
    """

    status: str = ""
    error: str = ""
    blocked: tuple[str, ...] = ()
    total: int = 0
    remaining: int = 0
    transferred: int = 0
    rate: int = 0
    dirty_rate: int = 0
    downtime: int = 0
    total_time: int = 0
    setup_time: int = 0

    @classmethod
    def of(cls, answer: Any) -> MigrationInfo:
        """From what the command returned."""
        if not isinstance(answer, Mapping):
            return cls()
        ram = answer.get("ram")
        ram = ram if isinstance(ram, Mapping) else {}
        return cls(
            status=str(answer.get("status", "")),
            error=str(answer.get("error-desc", "")),
            blocked=tuple(str(reason) for reason in answer.get("blocked-reasons") or ()),
            total=_number(ram, "total"),
            remaining=_number(ram, "remaining"),
            transferred=_number(ram, "transferred"),
            rate=_number(ram, "mbps", _BITS / 8),
            dirty_rate=_number(ram, "dirty-pages-rate", _number(ram, "page-size") or 4096),
            downtime=_number(answer, "downtime" if "downtime" in answer else "expected-downtime"),
            total_time=_number(answer, "total-time"),
            setup_time=_number(answer, "setup-time"),
        )

    @property
    def begun(self) -> bool:
        """There is or was a migration."""
        return self.status not in _NOT_BEGUN

    @property
    def over(self) -> bool:
        """Nothing more will change; words that are not known are of something that goes on."""
        return self.status in _OVER

    @property
    def completed(self) -> bool:
        """The guest was given away, or has arrived."""
        return self.status == COMPLETED

    @property
    def active(self) -> bool:
        """A migration goes on."""
        return self.begun and not self.over

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "status": self.status,
            "error": self.error,
            "milliseconds": {"total": self.total_time, "setup": self.setup_time, "downtime": self.downtime},
            "ram": {"total": self.total, "transferred": self.transferred, "remaining": self.remaining},
        }


@dataclass(frozen=True, slots=True)
class Moment:
    """An event.

    :param at: by the clock of QEMU's host
    :param what: the event's name, of MIGRATION the new status
    :param ram_pass: of MIGRATION_PASS the number of the pass over guest memory that begins, 0 of others
    """

    at: datetime
    what: str
    ram_pass: int = 0

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Moment:
        """From the event as it came."""
        stamp = event.get("timestamp")
        stamp = stamp if isinstance(stamp, Mapping) else {}
        seconds = _number(stamp, "seconds") + _number(stamp, "microseconds") / 1e6
        data = event.get("data")
        data = data if isinstance(data, Mapping) else {}
        what = str(data.get("status") or event.get("event", ""))
        return cls(datetime.fromtimestamp(seconds, UTC), what, _number(data, "pass"))

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        told = {"at": self.at.isoformat(timespec="milliseconds"), "what": self.what}
        return told | ({"pass": self.ram_pass} if self.ram_pass else {})


def _number(values: Mapping[str, Any], name: str, unit: float = 1) -> int:
    value = values.get(name, 0)
    return int(value * unit) if isinstance(value, (int, float)) else 0
