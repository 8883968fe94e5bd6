# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting that always ends."""

from __future__ import annotations

import time
from collections.abc import Callable


class Deadline:
    """A point in time by which something, named by ``what``, has to have happened."""

    def __init__(self, seconds: float, what: str) -> None:
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self._what = what

    def remaining(self) -> float:
        """Seconds left, more than zero; raises TimeoutError when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{self._what}: not within {self._seconds:g} s")
        return left


def wait_until(condition: Callable[[], bool], seconds: float, what: str, interval: float = 0.05) -> None:
    """Asks until the condition holds; raises TimeoutError, naming ``what``, if it does not in time."""
    deadline = Deadline(seconds, what)
    while not condition():
        time.sleep(min(interval, deadline.remaining()))
