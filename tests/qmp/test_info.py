# SPDX-License-Identifier: GPL-2.0-or-later
"""What query-migrate and events say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from qmpfilter.qmp.info import MigrationInfo, Moment

# As QEMU 10.0 answers while a guest is migrated.
ACTIVE = {
    "status": "active",
    "expected-downtime": 300,
    "setup-time": 2,
    "total-time": 4096,
    "ram": {
        "total": 67641344, "remaining": 1 << 20, "transferred": 4 << 20, "mbps": 80.0,
        "dirty-pages-rate": 64, "page-size": 4096,
    },
}  # fmt: skip


def test_active() -> None:
    info = MigrationInfo.of(ACTIVE)
    assert (info.status, info.active, info.over) == ("active", True, False)
    assert (info.total, info.remaining, info.transferred) == (67641344, 1 << 20, 4 << 20)
    assert (info.rate, info.dirty_rate) == (10_000_000, 64 * 4096)
    assert (info.downtime, info.total_time, info.setup_time) == (300, 4096, 2)


@pytest.mark.parametrize(
    ("status", "begun", "active", "over"),
    [
        ("", False, False, False),
        ("none", False, False, False),
        ("setup", True, True, False),
        ("device", True, True, False),
        ("failing", True, True, False),
        ("a word of the future", True, True, False),
        ("completed", True, False, True),
        ("failed", True, False, True),
        ("cancelled", True, False, True),
    ],
)
def test_status(status: str, begun: bool, active: bool, over: bool) -> None:
    info = MigrationInfo.of({"status": status} if status else {})
    assert (info.begun, info.active, info.over) == (begun, active, over)


@pytest.mark.parametrize("answer", [None, [], "", {"ram": None, "total-time": "long", "blocked-reasons": None}])
def test_what_is_not_told_is_nothing(answer: Any) -> None:
    assert MigrationInfo.of(answer) == MigrationInfo()


@pytest.mark.parametrize(
    ("event", "what"),
    [
        ({"event": "MIGRATION", "data": {"status": "setup"}}, "setup"),
        ({"event": "STOP"}, "STOP"),
        ({"event": "RESUME", "data": None}, "RESUME"),
        ({"event": "MIGRATION_PASS", "data": {}}, "MIGRATION_PASS"),
    ],
)
def test_events(event: dict[str, Any], what: str) -> None:
    moment = Moment.of(event | {"timestamp": {"seconds": 1_700_000_000, "microseconds": 250_000}})
    assert moment == Moment(datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC), what)
    assert moment.as_json() == {"at": "2023-11-14T22:13:20.250+00:00", "what": what}


def test_a_pass_over_memory_has_its_number() -> None:
    assert Moment.of({"event": "MIGRATION_PASS", "data": {"pass": 3}}).as_json()["pass"] == 3
