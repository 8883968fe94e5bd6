# SPDX-License-Identifier: GPL-2.0-or-later
"""Cables between emulated hosts, one for each two of them.

A cable is a pair of sockets, and a datagram is a frame: no port, and nothing that another run or another machine
could hear. A socket stays open for as long as this process has it, so a host that is booted again finds its cables in
place.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

_ADDRESS = "10.9.0.{}"
_CARD = "52:54:00:09:{:02x}:{:02x}"


@dataclass(frozen=True)
class Cable:
    """One end of a cable: its socket, the hardware address of the card there, and the address at the other end."""

    end: socket.socket
    card: str
    peer: str


def address(number: int) -> str:
    """The address of the host of that number, counted from 0; it is the same on all of its cables."""
    return _ADDRESS.format(number + 1)


def cables(hosts: int) -> Sequence[Sequence[Cable]]:
    """The ends at each of so many hosts."""
    ends: list[list[Cable]] = [[] for _ in range(hosts)]
    for one, other in combinations(range(hosts), 2):
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end, here, there in zip(pair, (one, other), (other, one), strict=True):
            ends[here].append(Cable(end, _CARD.format(here, there), address(there)))
    return ends
