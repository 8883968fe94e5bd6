# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses of migration sockets as QEMU writes them: ``tcp:HOST:PORT`` and ``unix:PATH``.

Source: QEMU 10.2.2 qapi/migration.json (MigrationAddress), util/qemu-sockets.c (inet_parse).
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from typing import Final

from qmpfilter.errors import HostError
from qmpfilter.relay.deadline import Deadline

__all__ = ["Address", "TcpAddress", "UnixAddress", "parse_address"]

_BACKLOG: Final = 64
# What a switch buffers anyway; the kernel may give less.
_BUFFER: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """``tcp:HOST:PORT``; an IPv6 address stands in brackets, an empty host is any when listening."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"

    def listen(self) -> socket.socket:
        """A listening socket.

        :raises HostError: the address cannot be listened on
        """
        try:
            family, _, _, _, address = self._resolve(socket.AI_PASSIVE)[0]
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise HostError(f"cannot listen on {self}: {error.strerror or error}") from error
        return listener

    def connect(self, deadline: Deadline) -> socket.socket:
        """A connected socket.

        :raises HostError: nobody answers there, or not in time
        """
        try:
            # The name is resolved here and not by create_connection, whose timeout counts anew for each address.
            last: OSError | None = None
            for family, _, _, _, address in self._resolve(0):
                connection = socket.socket(family, socket.SOCK_STREAM)
                try:
                    connection.settimeout(deadline.remaining())
                    connection.connect(address)
                    connection.settimeout(None)
                    return connection
                except OSError as error:
                    connection.close()
                    last = error
            raise last or OSError("the name has no address")
        except OSError as error:
            raise HostError(f"cannot connect to {self}: {error.strerror or error}") from error

    def _resolve(self, flags: int) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]:
        return socket.getaddrinfo(  # type: ignore[return-value]
            self.host or None, self.port, type=socket.SOCK_STREAM, flags=flags
        )


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """``unix:PATH``."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def listen(self) -> socket.socket:
        """A listening socket that only its owner may connect to. A socket that nobody listens on any more is
        replaced.

        :raises HostError: the path cannot be listened on, or somebody listens there
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_stale()
            mask = os.umask(0o177)
            try:
                listener.bind(self.path)
            finally:
                os.umask(mask)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise HostError(f"cannot listen on {self}: {error.strerror or error}") from error
        return listener

    def connect(self, deadline: Deadline) -> socket.socket:
        """A connected socket.

        :raises HostError: nobody answers there, or not in time
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(deadline.remaining())
            connection.connect(self.path)
            connection.settimeout(None)
        except OSError as error:
            connection.close()
            raise HostError(f"cannot connect to {self}: {error.strerror or error}") from error
        return connection

    def _remove_stale(self) -> None:
        # Nobody may find out by connecting: a QEMU that waits there would take it for its source and end.
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(self.path).st_mode) and self.path not in _bound_paths():
                os.unlink(self.path)


def _bound_paths() -> set[str]:
    """Paths of this network namespace's sockets (proc(5), /proc/net/unix: the eighth column, where there is one)."""
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        rows = [line.rstrip("\n").split(" ", 7) for line in table]
    return {row[7] for row in rows if len(row) == 8}


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """The address that a text in QEMU's manner means.

    :raises HostError: it is no address, or of a transport that cannot be relayed
    """
    kind, colon, rest = text.partition(":")
    if kind == "unix" and rest:
        return UnixAddress(rest)
    if kind == "tcp":
        host, colon, port = rest.rpartition(":")
        if colon and port.isascii() and port.isdigit() and int(port) < 1 << 16:
            return TcpAddress(host.removeprefix("[").removesuffix("]"), int(port))
    raise HostError(f"{text!r} is not an address that can be relayed: tcp:HOST:PORT or unix:PATH is")


def widen(connection: socket.socket) -> None:
    """Give a connection buffers that keep a fast link busy, and no delay of small messages."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
