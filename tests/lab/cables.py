# SPDX-License-Identifier: GPL-2.0-or-later
"""Cables between emulated hosts, one for each two of them, and from a host to one port of this machine.

A cable is a pair of sockets, and a datagram is a frame: no port, and nothing that another run or another machine
could hear. A socket stays open for as long as this process has it, so a host that is booted again finds its cables in
place.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

_ADDRESS = "10.9.0.{}"
_CARD = "52:54:00:09:{:02x}:{:02x}"
SERVICE = "10.0.2.100"
"""Where hosts find what this machine has for them."""


@dataclass(frozen=True)
class Wire:
    """What a network card of an emulated host is plugged into.

    :param card: the card's hardware address
    :param own: the address at this end
    :param peer: the address at the other end
    :param backend: what QEMU's ``-netdev`` is told
    :param descriptors: what QEMU inherits for it
    """

    card: str
    own: str
    peer: str
    backend: str
    descriptors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cable(Wire):
    """One end of a cable.

    :param end: its socket
    """

    end: socket.socket = field(kw_only=True)


def outlet(port: int) -> Wire:
    """To a port of this machine's loopback and to nothing else: the same port of the other end."""
    forward = f"guestfwd=tcp:{SERVICE}:{port}-cmd:socat - TCP4:127.0.0.1:{port}"
    return Wire("52:54:00:09:ff:ff", "10.0.2.15", SERVICE, f"user,restrict=on,{forward}")


def address(number: int) -> str:
    """The address of the host of that number, counted from 0; it is the same on all of its cables."""
    return _ADDRESS.format(number + 1)


def cables(hosts: int) -> Sequence[Sequence[Cable]]:
    """The ends at each of so many hosts."""
    ends: list[list[Cable]] = [[] for _ in range(hosts)]
    for one, other in combinations(range(hosts), 2):
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end, here, there in zip(pair, (one, other), (other, one), strict=True):
            backend = f"dgram,local.type=fd,local.str={end.fileno()}"
            card, own, peer = _CARD.format(here, there), address(here), address(there)
            ends[here].append(Cable(card, own, peer, backend, (end.fileno(),), end=end))
    return ends
