# SPDX-License-Identifier: GPL-2.0-or-later
"""The last words to a destination that waits for a section."""

from __future__ import annotations

import select
import socket
from typing import Final

from qmpfilter.wire.withdrawal import withdrawal

__all__ = ["withdraw"]

# For it to take, and to heed, why the migration is withdrawn; the guest stands still meanwhile.
_SECONDS: Final = 3.0


def withdraw(destination: socket.socket, reason: str) -> None:
    """Say why, and give the destination a moment to read it: the source may have it ended once that is told.

    :raises OSError: it is gone
    """
    try:
        destination.settimeout(_SECONDS)
        destination.sendall(withdrawal(reason))
        destination.shutdown(socket.SHUT_WR)
        ending = select.poll()
        ending.register(destination, select.POLLRDHUP)
        ending.poll(_SECONDS * 1000)
    except OSError:
        # It has gone, or takes nothing.
        destination.shutdown(socket.SHUT_RDWR)
