# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt counts of a migration.

Source: libvirt 11.3 include/libvirt/libvirt-domain.h (VIR_DOMAIN_JOB_*).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qmpfilter.qmp.info import MigrationInfo

__all__ = ["as_json", "iteration", "progress"]

_PAGE: Final = 4096
_TOLD: Final = (
    "time_elapsed",
    "downtime",
    "setup_time",
    "data_total",
    "data_processed",
    "memory_total",
    "memory_processed",
    "memory_constant",
    "memory_normal",
    "memory_dirty_rate",
    "memory_iteration",
    "memory_postcopy_requests",
    "disk_total",
    "disk_processed",
    "success",
    "errmsg",
)


def progress(stats: Mapping[str, Any], status: str) -> MigrationInfo:
    """As a source would tell it over QMP.

    :param stats: of the running job; empty before there is one
    :param status: in a word
    """
    return MigrationInfo(
        status=status,
        total=_number(stats, "memory_total"),
        remaining=_number(stats, "memory_remaining"),
        transferred=_number(stats, "memory_processed"),
        rate=_number(stats, "memory_bps"),
        dirty_rate=_number(stats, "memory_dirty_rate") * (_number(stats, "memory_page_size") or _PAGE),
        downtime=_number(stats, "downtime"),
        total_time=_number(stats, "time_elapsed"),
        setup_time=_number(stats, "setup_time"),
    )


def iteration(stats: Mapping[str, Any]) -> int:
    """How often memory was gone through, the first time counted."""
    return _number(stats, "memory_iteration")


def as_json(stats: Mapping[str, Any]) -> dict[str, Any]:
    """For a report: times in milliseconds, sizes in bytes, what libvirt did not tell left out."""
    return {name: stats[name] for name in _TOLD if name in stats}


def _number(stats: Mapping[str, Any], name: str) -> int:
    value = stats.get(name, 0)
    return value if isinstance(value, int) else 0
