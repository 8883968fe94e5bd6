# SPDX-License-Identifier: GPL-2.0-or-later
"""A deadline that somebody else's thread keeps, whatever the own one is busy with."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Watch"]


class Watch:
    """Its thread is there before the time begins to run: to start one takes time, and then the guest stands still.

    :param seconds: that there are
    :param late: called once, from that thread, if they were not enough
    """

    def __init__(self, seconds: float, late: Callable[[], None]) -> None:
        self._seconds = seconds
        self._late = late
        self._begun = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._wait, name="watch", daemon=True).start()

    def begin(self) -> None:
        """From now on."""
        self._begun.set()

    def end(self) -> None:
        """It was in time, or has not to be any more."""
        self._ended.set()
        self._begun.set()

    def _wait(self) -> None:
        self._begun.wait()
        if not self._ended.wait(self._seconds):
            self._late()
