# SPDX-License-Identifier: GPL-2.0-or-later
"""A log that strangers cannot fill: whoever connects to a relay may cause as many warnings as they like."""

from __future__ import annotations

import logging
import threading
from typing import Final

__all__ = ["Sparing"]

# What stands before a message.
_HEAD: Final = 80


class Sparing(logging.Filter):
    """Lets so much pass, and errors always. The last record that is no error says that it is the last.

    :param most: bytes, roughly
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._left = most

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record passes."""
        if record.levelno >= logging.ERROR:
            return True
        with self._lock:
            before = self._left
            self._left -= _HEAD + len(record.getMessage())
            if before > 0 >= self._left:
                record.msg, record.args = "there is more to warn of, and none of it is written down", ()
        return before > 0
