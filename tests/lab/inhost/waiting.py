# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting that always ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

# Of /proc/net/unix: include/uapi/linux/net.h, __SO_ACCEPTCON.
LISTENS = 1 << 16


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


def listens(path: Path) -> bool:
    """Somebody listens on a unix socket: it is there a moment before that."""
    rows = [line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]]
    return any(len(row) == 8 and row[7] == str(path) and int(row[3], 16) & LISTENS for row in rows)
