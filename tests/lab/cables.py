# SPDX-License-Identifier: GPL-2.0-or-later
"""Cables between emulated hosts, one for each two of them, and from a host to one port of this machine.

A cable is a pair of sockets, and a datagram is a frame: no port, and nothing that another run or another machine
could hear. A socket stays open for as long as this process has it, so a host that is booted again finds its cables in
place.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

_ADDRESS = "10.9.0.{}"
_CARD = "52:54:00:09:{:02x}:{:02x}"
SERVICE = "10.0.2.100"
"""Where hosts find what this machine has for them."""


class Wire(Protocol):
    """What a network card of an emulated host is plugged into.

    :ivar card: the card's hardware address
    :ivar own: the address at this end
    :ivar peer: the address at the other end
    :ivar backend: what QEMU's ``-netdev`` is told
    :ivar descriptors: what QEMU inherits for it
    """

    @property
    def card(self) -> str: ...
    @property
    def own(self) -> str: ...
    @property
    def peer(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def descriptors(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Cable:
    """One end of a cable, a :class:`Wire`."""

    end: socket.socket
    card: str
    own: str
    peer: str

    @property
    def backend(self) -> str:
        return f"dgram,local.type=fd,local.str={self.end.fileno()}"

    @property
    def descriptors(self) -> Sequence[int]:
        return [self.end.fileno()]


@dataclass(frozen=True)
class Outlet:
    """A :class:`Wire` to a port of this machine's loopback and to nothing else: the same port of the other end."""

    port: int
    card: str = "52:54:00:09:ff:ff"
    own: str = "10.0.2.15"
    peer: str = SERVICE

    @property
    def backend(self) -> str:
        return f"user,restrict=on,guestfwd=tcp:{self.peer}:{self.port}-cmd:socat - TCP4:127.0.0.1:{self.port}"

    @property
    def descriptors(self) -> Sequence[int]:
        return []


def address(number: int) -> str:
    """The address of the host of that number, counted from 0; it is the same on all of its cables."""
    return _ADDRESS.format(number + 1)


def cables(hosts: int) -> Sequence[Sequence[Cable]]:
    """The ends at each of so many hosts."""
    ends: list[list[Cable]] = [[] for _ in range(hosts)]
    for one, other in combinations(range(hosts), 2):
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end, here, there in zip(pair, (one, other), (other, one), strict=True):
            ends[here].append(Cable(end, _CARD.format(here, there), address(here), address(there)))
    return ends
