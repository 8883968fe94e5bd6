# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt told of domains: a line of the log each, and a part of the reports of sessions that know theirs."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from qmpfilter.libvirt.events import Happening

__all__ = ["Happenings", "uuid_of"]

_log: Final = logging.getLogger(__name__)

_MOST_DOMAINS: Final = 4096
_MOST_EACH: Final = 100
_KNOWN_BY: Final = ("domain", "source")
"""Parts of a report that may have the domain's UUID."""


class Happenings:
    """The last of each domain. In one loop."""

    def __init__(self) -> None:
        self._of: dict[str, deque[Happening]] = {}
        self._news = asyncio.Condition()
        self._telling: set[asyncio.Task[None]] = set()

    def hear(self, happening: Happening) -> None:
        """Another one."""
        _log.info("libvirt: %s", happening)
        # The domain that was heard of longest ago is the first.
        last = self._of.pop(happening.uuid, deque(maxlen=_MOST_EACH))
        last.append(happening)
        self._of[happening.uuid] = last
        if len(self._of) > _MOST_DOMAINS:
            del self._of[next(iter(self._of))]
        task = asyncio.get_running_loop().create_task(self._tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def wait(self, report: Mapping[str, Any], seconds: float) -> None:
        """Until the job of a report's migration has ended to libvirt, which may be later than its stream; or so
        long."""
        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(lambda: any(one.ends_job for one in self._about(report)))
        except TimeoutError:
            pass

    def told(self, report: Mapping[str, Any]) -> dict[str, Any] | None:
        """What belongs to a report, None if that is nothing."""
        about = self._about(report)
        if not about:
            return None
        jobs = [dict(one.job) for one in about if one.ends_job]
        return {"events": [one.as_json() for one in about], "job": jobs[-1] if jobs else None}

    def _about(self, report: Mapping[str, Any]) -> list[Happening]:
        began = _begin(report)
        return [one for one in self._of.get(uuid_of(report), ()) if began is None or one.at >= began]

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


def uuid_of(report: Mapping[str, Any]) -> str:
    """The domain's, empty if the session did not know it."""
    for part in _KNOWN_BY:
        known = report.get(part)
        if isinstance(known, Mapping) and known.get("uuid"):
            return str(known["uuid"])
    return ""


def _begin(report: Mapping[str, Any]) -> datetime | None:
    moments = report.get("moments")
    try:
        return min(map(datetime.fromisoformat, moments.values())) if moments else None
    except (AttributeError, ValueError, TypeError):
        return None
