# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for the lock of a file, but not for ever.

Source: flock(2), which has no deadline of its own.
"""

from __future__ import annotations

import fcntl
import time
from typing import Final

__all__ = ["locked_within"]

# The audit log is waited for while a guest stands still.
_AGAIN_SECONDS: Final = 0.002


def locked_within(descriptor: int, seconds: float) -> bool:
    """Lock an open file for this process alone, until it is closed; False if somebody else had it for so long.

    :raises OSError: it cannot be locked
    """
    late = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= late:
                return False
            time.sleep(_AGAIN_SECONDS)
