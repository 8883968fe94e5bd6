# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections by which a guest's disks come (``--copy-storage-*``): before the guest, and passed on at once.

The disks are copied over NBD, whose server speaks first: the source says nothing until it is led on, and what answers
there in another way is no place for disks. So no stream passes unseen because it was taken for one.

Source: the NBD protocol (QEMU 10.2.2 docs/interop/nbd.rst), the initial phase of its handshake.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qmpfilter.errors import BugError, HostError
from qmpfilter.relay.channel import first_bytes
from qmpfilter.relay.deadline import Deadline

__all__ = ["NO_STORAGE", "Storage"]

_GREETING: Final = b"NBDMAGIC"
_QUIET_SECONDS: Final = 1.0
_GREETING_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Storage:
    """Which connections those are, and where they go.

    :param onward: opens a connection there within a deadline, for one of the source's
    :param port: to which they come, None if it is not their own
    :param silent: they are those that come before the guest and say nothing
    """

    onward: Callable[[Deadline, socket.socket], socket.socket]
    port: int | None = None
    silent: bool = False

    def patience(self, seconds: float) -> float:
        """How long to wait for the first bytes of a connection.

        :param seconds: what is waited for any other
        """
        return min(seconds, _QUIET_SECONDS) if self.silent else seconds

    def has_port_of(self, connection: socket.socket) -> bool:
        """It came to their port."""
        return (
            self.port is not None and connection.family != socket.AF_UNIX and connection.getsockname()[1] == self.port
        )

    def means(self, first: bytes) -> bool:
        """A connection that came before the guest, and began so, is one of them."""
        return self.silent and not first

    def connect(self, deadline: Deadline, source: socket.socket) -> socket.socket:
        """A connection on which disks are waited for.

        :raises HostError: nobody answers there, or not as disks are answered
        """
        destination = self.onward(deadline, source)
        try:
            # Whoever has to be accepted waits meanwhile.
            first = first_bytes(destination, min(deadline.remaining(), _GREETING_SECONDS))
            if not first or not _GREETING.startswith(first):
                raise HostError("where the guest's disks would go nobody speaks NBD")
        except BaseException:
            destination.close()
            raise
        return destination


def _nowhere(_: Deadline, _source: socket.socket) -> socket.socket:
    raise BugError("a connection was taken for a disk's where none come")


NO_STORAGE: Final = Storage(_nowhere)
"""No disks come."""
