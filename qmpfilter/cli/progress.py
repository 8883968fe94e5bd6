# SPDX-License-Identifier: GPL-2.0-or-later
"""A progress bar on standard error for what takes over a second; none when that is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["ReadProgress"]

_DELAY: Final = 1.0
_INTERVAL: Final = 0.1


class ReadProgress:
    """Shows how much of an input was read.

    :param total: bytes of the input, None if it is not known
    """

    def __init__(self, title: str, total: int | None) -> None:
        self._title = title
        self._total = total
        self._next = time.monotonic() + _DELAY
        self._bar: Progress | None = None
        self._enabled = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> ReadProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int) -> None:
        """Bytes of the input that were read so far."""
        now = time.monotonic()
        if not self._enabled or now < self._next:
            return
        self._next = now + _INTERVAL
        if self._bar is None:
            self._bar = self._start()
        self._bar.update(self._bar.task_ids[0], completed=done)

    def _start(self) -> Progress:
        # Imported here: most runs are over before a bar is shown.
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bar.add_task(self._title, total=self._total)
        bar.start()
        return bar
