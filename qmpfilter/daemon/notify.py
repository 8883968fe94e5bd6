# SPDX-License-Identifier: GPL-2.0-or-later
"""What a service manager wants to hear (sd_notify(3)), and the socket it may have opened (sd_listen_fds(3)).

Each message is one datagram of ``KEY=VALUE`` lines to the socket that ``NOTIFY_SOCKET`` names. Without a service
manager nothing is said, and one that does not listen any more is no reason to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from qmpfilter.errors import HostError

__all__ = ["Notifier", "inherited_listener"]

# sd_listen_fds(3): the first descriptor that is passed.
_FIRST: Final = 3
_MICROSECONDS: Final = 1_000_000


class Notifier:
    """Tells the service manager how the daemon is.

    :param environment: takes out what is meant for this process alone
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._path = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = int(microseconds) / _MICROSECONDS if meant and microseconds.isdigit() else 0.0

    def say(self, **fields: str) -> None:
        """``READY="1"``, ``STATUS="..."``, and what else sd_notify(3) has."""
        if not self._path:
            return
        # A path that begins with @ is of the abstract namespace (unix(7)).
        address = f"\0{self._path[1:]}" if self._path.startswith("@") else self._path
        text = "".join(f"{key}={value}\n" for key, value in fields.items())
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end,
            contextlib.suppress(OSError),
        ):
            end.setblocking(False)
            end.sendto(text.encode(), address)

    def reloading(self) -> None:
        """The configuration is read again; ``READY`` ends that."""
        self.say(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))

    async def feed_watchdog(self) -> None:
        """For as long as the daemon's loop turns."""
        while self._path and self._watchdog:
            self.say(WATCHDOG="1")
            await asyncio.sleep(self._watchdog / 3)


def inherited_listener(environment: MutableMapping[str, str]) -> socket.socket | None:
    """The listening socket that a service manager passed, if it did.

    :raises HostError: it passed more than one, or none that listens
    """
    count = environment.pop("LISTEN_FDS", "0")
    meant = environment.pop("LISTEN_PID", "") == str(os.getpid())
    environment.pop("LISTEN_FDNAMES", None)
    if not meant or count == "0":
        return None
    if count != "1":
        raise HostError(f"the service manager passed {count} sockets: one was expected, the control socket")
    listener = socket.socket(fileno=_FIRST)
    if listener.family != socket.AF_UNIX or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise HostError("the service manager passed a descriptor that is no listening unix socket")
    os.set_inheritable(_FIRST, False)
    listener.setblocking(False)
    return listener
