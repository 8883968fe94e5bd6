# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon knows of one migration, and how it is to be understood when its worker is gone.

::

    STARTING -> WAITING -> STREAMING -> COMMITTED -> ENDED
        └──────────┴────────────┴──────────────────────┘

A session never goes back, and has ended when its worker has: with the outcome that the worker told, or, if that died
without a word, with what follows from how far it was.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from qmpfilter.errors import BugError
from qmpfilter.relay.report import FORMAT
from qmpfilter.relay.session import Outcome, Phase

__all__ = ["Ending", "Origin", "Session", "Stage", "read_journal"]


class Stage(enum.Enum):
    """How far a session is: that of its worker's :class:`~qmpfilter.relay.session.Phase`, and before that."""

    STARTING = "starting"
    WAITING = Phase.WAITING.value
    STREAMING = Phase.STREAMING.value
    COMMITTED = Phase.COMMITTED.value
    ENDED = Phase.ENDED.value


_ORDER: Final = list(Stage)


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a session from its start; the first line of its journal.

    :param pid: of its worker
    :param pid_start: when that began, in the kernel's clock ticks since boot: a pid alone may come again
    :param began: UTC, ISO 8601
    :param asked_by: the user and process that asked for it
    :param uuid: of the domain, empty where it is not known
    :param redirected: port of the daemon's own to which rules of nftables bring what is for `listen`, 0 without such
    """

    session: str
    pid: int
    pid_start: int
    began: str
    listen: str
    connect: str
    mode: str
    verdict: str
    asked_by: str
    uuid: str = ""
    redirected: int = 0

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Origin | None:
        """None if it is not what :meth:`to_json` wrote."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a session ended."""

    outcome: Outcome
    reason: str


@dataclass(slots=True)
class Session:
    """One migration.

    :param attached: its worker speaks to this daemon; otherwise only its journal tells of it
    :param moments: when it came to which stage, UTC
    :param report: the worker's, as it was sent
    """

    origin: Origin
    attached: bool = True
    stage: Stage = Stage.STARTING
    ending: Ending | None = None
    forward: int = 0
    backward: int = 0
    channels: list[str] = field(default_factory=list)
    moments: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] | None = None
    _said: Ending | None = None

    def hear(self, event: Mapping[str, Any]) -> None:
        """What the worker said, or a line of its journal. What makes no sense is passed over: the worker may be of a
        newer version."""
        if "phase" in event:
            self._come_to(event)
        elif event.get("event") == "moved":
            self.forward, self.backward = event.get("forward", 0), event.get("backward", 0)
            self.channels = event.get("channels", [])
        elif event.get("event") == "report":
            self.report = event.get("report")

    def end(self, report: Mapping[str, Any] | None, how: str) -> Ending:
        """The worker has ended.

        :param report: what it left
        :param how: it ended, in words
        """
        if self.ending is not None:
            raise BugError(f"session {self.origin.session} ended twice")
        self.ending = _told(report) or self._said or _without_a_word(self.stage, how)
        self.stage = Stage.ENDED
        return self.ending

    def as_json(self) -> dict[str, Any]:
        """What is told of a session while it runs."""
        told = {name: value for name, value in asdict(self.origin).items() if name != "pid_start"}
        return {
            **told,
            "stage": self.stage.value,
            "attached": self.attached,
            "channels": self.channels,
            "bytes": {"forward": self.forward, "backward": self.backward},
            "moments": self.moments,
        }

    def last_report(self) -> dict[str, Any]:
        """A report for a session whose worker left none."""
        if self.ending is None:
            raise BugError(f"session {self.origin.session} has not ended")
        return {
            "session": self.origin.session,
            "listen": self.origin.listen,
            "connect": self.origin.connect,
            "asked_by": self.origin.asked_by,
            "format": FORMAT,
            "outcome": self.ending.outcome.value,
            "reason": self.ending.reason,
            "mode": self.origin.mode,
            "verdict": self.origin.verdict,
            "channels": self.channels,
            "moments": self.moments,
        }

    def _come_to(self, event: Mapping[str, Any]) -> None:
        try:
            stage = Stage(event["phase"])
        except ValueError:
            return
        self.moments.setdefault(stage.value, str(event.get("at", "")))
        if stage is Stage.ENDED:
            # The worker still lives, and writes its report.
            self._said = _told(event)
        elif _ORDER.index(stage) > _ORDER.index(self.stage):
            self.stage = stage


def _without_a_word(stage: Stage, how: str) -> Ending:
    """What becomes of a migration whose worker dies: its connections break with it."""
    if stage is Stage.COMMITTED:
        return Ending(
            Outcome.IN_DOUBT,
            f"the worker {how} after the commit point, when the destination could have started the guest: ask both "
            "QEMUs who runs it",
        )
    return Ending(Outcome.FAILED, f"the worker {how} before the commit point: the guest goes on at the source")


def _told(report: Mapping[str, Any] | None) -> Ending | None:
    try:
        return None if report is None else Ending(Outcome(report["outcome"]), str(report.get("reason", "")))
    except (KeyError, ValueError):
        return None


def read_journal(lines: Iterable[str]) -> tuple[Origin | None, list[dict[str, Any]]]:
    """A session's beginning, and what its worker told since; a line that was cut is none."""
    rows = list(lines)
    origin = Origin.from_json(rows[0]) if rows else None
    events = []
    for row in rows[1:]:
        try:
            event = json.loads(row)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return origin, events
