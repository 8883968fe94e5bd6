# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a migration is, on standard error: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

from qmpfilter.qmp.info import MigrationInfo

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["MigrationProgress", "as_line", "as_size"]

_LINE_SECONDS: Final = 5.0


class MigrationProgress:
    """Shows what the source tells. Use as a context manager."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._state = ""
        self._next = 0.0

    def __enter__(self) -> MigrationProgress:
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = _bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def update(self, info: MigrationInfo, filtered: str = "") -> None:
        """The last that is known.

        :param filtered: what passed through the filter, in words
        """
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                total=info.total or None,
                completed=info.total - info.remaining,
                description=info.status,
                details=_joined(_details(info), filtered),
            )
            return
        now = time.monotonic()
        if info.begun and (info.status != self._state or now >= self._next):
            self._state, self._next = info.status, now + _LINE_SECONDS
            self.say(_joined(as_line(info), filtered))


def as_line(info: MigrationInfo) -> str:
    """The state in one line; of a migration that is over the state alone."""
    return info.status if info.over or not info.total else f"{info.status}: {_details(info)}"


def as_size(count: int) -> str:
    """Bytes for a person."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _details(info: MigrationInfo) -> str:
    text = f"{as_size(info.remaining)} of {as_size(info.total)} left, {as_size(info.rate)}/s"
    return f"{text}, the guest changes {as_size(info.dirty_rate)}/s" if info.dirty_rate else text


def _joined(*texts: str) -> str:
    return "; ".join(text for text in texts if text)


def _bar() -> Progress:
    # Imported here: only a terminal needs it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[details]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task("connecting", total=None, details="")
    bar.start()
    return bar
