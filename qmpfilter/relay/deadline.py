# SPDX-License-Identifier: GPL-2.0-or-later
"""Every wait has an end."""

from __future__ import annotations

import time

from qmpfilter.errors import DeadlineError

__all__ = ["Deadline"]


class Deadline:
    """A point in time, and what has to have happened by then.

    :param seconds: from now; finite
    """

    def __init__(self, seconds: float, what: str) -> None:
        self.seconds = seconds
        self.what = what
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds that are left, always more than 0.

        :raises DeadlineError: there are none
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"{self.what} took longer than {self.seconds:g} s")
        return left
