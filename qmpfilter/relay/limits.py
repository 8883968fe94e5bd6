# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a relay waits for what; nothing waits for ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["LONGEST", "Waits"]


LONGEST: Final = 24 * 86400.0
"""Seconds that no wait exceeds: epoll_wait(2) takes milliseconds in an int."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds.

    :param source: until the source connects
    :param connect: for the connection to the destination
    :param hello: for the first bytes of a connection; an extra channel may stay silent longer
    :param idle: before the commit point, without a byte of the source
    :param tail: from the first byte that is held back to the commit point
    :param answer: after the commit point, without a byte of either side; then nobody knows who runs the guest
    :param linger: for a side that was told of the end to close
    """

    source: float = 600.0
    connect: float = 30.0
    hello: float = 10.0
    idle: float = 300.0
    tail: float = 30.0
    answer: float = 3600.0
    linger: float = 10.0
