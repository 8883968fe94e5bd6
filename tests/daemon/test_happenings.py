# SPDX-License-Identifier: GPL-2.0-or-later
"""What of libvirt's events becomes a part of which report."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qmpfilter.daemon.happenings import Happenings, uuid_of
from qmpfilter.libvirt.events import Happening

BEGAN = datetime(2026, 3, 1, 14, 25, 30, tzinfo=UTC)


def happening(seconds: float, what: str, uuid: str = "u", **job: Any) -> Happening:
    return Happening(BEGAN + timedelta(seconds=seconds), "guest", uuid, what, job)


def report(**more: Any) -> dict[str, Any]:
    moments = {"ended": BEGAN + timedelta(seconds=9), "waiting": BEGAN}
    return {"session": "s", "moments": {name: moment.isoformat() for name, moment in moments.items()}, **more}


@pytest.mark.parametrize(
    ("parts", "uuid"),
    [
        ({}, ""),
        ({"source": None}, ""),
        ({"source": {"uuid": ""}}, ""),
        ({"source": {"uuid": "u"}}, "u"),
        ({"domain": {"uuid": "u"}, "source": {"uuid": "v"}}, "u"),
    ],
)
def test_whose_report_it_is(parts: dict[str, Any], uuid: str) -> None:
    assert uuid_of(report(**parts)) == uuid


def test_what_belongs_to_a_report() -> None:
    async def scenario() -> Happenings:
        happenings = Happenings()
        for one in (
            happening(-1, "an earlier one", downtime=99),
            happening(1, "setup"),
            happening(2, "another's", "v"),
            happening(3, "job completed", time_elapsed=872, downtime=31),
        ):
            happenings.hear(one)
        await asyncio.sleep(0)
        return happenings

    happenings = asyncio.run(scenario())
    assert happenings.told(report(source={"uuid": "u"})) == {
        "events": [
            {"at": "2026-03-01T14:25:31.000+00:00", "what": "setup"},
            {"at": "2026-03-01T14:25:33.000+00:00", "what": "job completed"},
        ],
        "job": {"time_elapsed": 872, "downtime": 31},
    }
    assert happenings.told(report()) is None
    assert happenings.told(report(source={"uuid": "w"})) is None


def test_the_end_of_the_job_is_waited_for_but_not_for_ever() -> None:
    async def scenario() -> None:
        happenings = Happenings()
        about = report(source={"uuid": "u"})
        waiting = asyncio.create_task(happenings.wait(about, 20))
        await asyncio.sleep(0)
        happenings.hear(happening(1, "setup"))
        happenings.hear(happening(2, "job completed", downtime=31))
        await waiting
        await happenings.wait(report(source={"uuid": "w"}), 0.01)

    asyncio.run(scenario())
