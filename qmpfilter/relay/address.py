# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses of migration sockets as QEMU writes them: ``tcp:HOST:PORT`` and ``unix:PATH``; and ``original``, where a
redirected connection wanted to go; and ``pair:`` before the first two, where another filter is.

Sources: QEMU 10.2.2 qapi/migration.json (MigrationAddress), util/qemu-sockets.c (inet_parse); Linux 7.3
include/uapi/linux/netfilter_ipv4.h and netfilter_ipv6/ip6_tables.h (SO_ORIGINAL_DST).
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from qmpfilter.errors import BugError, HostError
from qmpfilter.relay.deadline import Deadline

__all__ = [
    "MARK",
    "PAIR",
    "QMP",
    "Address",
    "Destination",
    "Listening",
    "OriginalDestination",
    "PairAddress",
    "TcpAddress",
    "UnixAddress",
    "listened_at",
    "listening",
    "parse_address",
    "parse_destination",
    "parse_listening",
    "tune",
]

QMP: Final = "qmp:"
"""Before the path of a QMP socket, where one may stand instead of an address."""

PAIR: Final = "pair:"
"""Before an address at which the other filter of a pair is."""

MARK: Final = 0x716D
"""SO_MARK of a relay's own connections to an original destination, which a rule that redirects has to let pass."""

_BACKLOG: Final = 64
_UNIX_BUFFER: Final = 1 << 19
_SO_ORIGINAL_DST: Final = 80
# An IPv4 peer of an IPv6 socket.
_MAPPED: Final = "::ffff:"
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6: Final = struct.Struct("!2xH4x16s4x")


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
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(_BACKLOG)
            except OSError:
                listener.close()
                raise
        except OSError as error:
            raise HostError(f"cannot listen on {self}: {error.strerror or error}") from error
        return listener

    def connect(self, deadline: Deadline, _source: socket.socket | None = None) -> socket.socket:
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
        return socket.getaddrinfo(  # type: ignore[return-value]  # of the Internet, so with ports
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

    def connect(self, deadline: Deadline, _source: socket.socket | None = None) -> socket.socket:
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
        # The seventh column is padded: soon after boot two blanks stand before it.
        rows = [line.rstrip("\n").split(maxsplit=7) for line in table]
    return {row[7] for row in rows if len(row) == 8}


@dataclass(frozen=True, slots=True)
class PairAddress:
    """``pair:tcp:HOST:PORT`` or ``pair:unix:PATH``: what is said there :mod:`qmpfilter.relay.pair_protocol` tells."""

    inner: TcpAddress | UnixAddress

    def __str__(self) -> str:
        return f"{PAIR}{self.inner}"

    def listen(self) -> socket.socket:
        """A listening socket, as the address without ``pair:`` has it.

        :raises HostError: the address cannot be listened on
        """
        return self.inner.listen()


@dataclass(frozen=True, slots=True)
class OriginalDestination:
    """``original``: where each of the source's connections was to go before a rule of nftables redirected it."""

    def __str__(self) -> str:
        return "original"

    def connect(self, deadline: Deadline, source: socket.socket | None = None) -> socket.socket:
        """A socket that is connected there, with :data:`MARK`.

        :raises HostError: the connection was not redirected, nobody answers there, or it may not be marked, which
            takes CAP_NET_ADMIN
        """
        if source is None:
            raise BugError("an original destination was asked for without a connection")
        try:
            family, place = _original(source)
            if place == source.getsockname()[:2]:
                raise HostError("a connection came here that was not redirected, and so has no original destination")
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
                connection.settimeout(deadline.remaining())
                connection.connect(place)
                connection.settimeout(None)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            raise HostError(f"cannot connect to the original destination: {error.strerror or error}") from error
        return connection


def _original(source: socket.socket) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """:raises OSError: netfilter knows nothing of this connection"""
    if source.family == socket.AF_INET6 and not source.getsockname()[0].startswith(_MAPPED):
        raw = source.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
        port, host = _SOCKADDR_IN6.unpack(raw)
        return socket.AF_INET6, (socket.inet_ntop(socket.AF_INET6, host), port)
    port, host = _SOCKADDR_IN.unpack(source.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size))
    return socket.AF_INET, (socket.inet_ntop(socket.AF_INET, host), port)


Address = TcpAddress | UnixAddress
Listening = TcpAddress | UnixAddress | PairAddress
Destination = TcpAddress | UnixAddress | PairAddress | OriginalDestination


@contextlib.contextmanager
def listening(address: Listening) -> Iterator[socket.socket]:
    """A listening socket, in this block. The path of a unix socket goes with it, unless another is there by then.

    :raises HostError: the address cannot be listened on
    """
    inner = address.inner if isinstance(address, PairAddress) else address
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(inner.listen())
        if isinstance(inner, UnixAddress):
            with contextlib.suppress(OSError):
                # While this is open no other file is given the same number.
                held = os.open(inner.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, held)
                stack.callback(_remove, inner.path, held)
        yield listener


def _remove(path: str, held: int) -> None:
    """Remove a path if it leads to a file that is open."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(path), os.fstat(held)):
            os.unlink(path)


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


def parse_listening(text: str, parse: Callable[[str], Address] = parse_address) -> Listening:
    """The same as :func:`parse_address`, and with ``pair:`` before it.

    :param parse: another reader of what is behind that
    :raises HostError: it is neither
    """
    return PairAddress(parse(text.removeprefix(PAIR))) if text.startswith(PAIR) else parse(text)


def parse_destination(text: str) -> Destination:
    """The same as :func:`parse_listening`, and ``original``.

    :raises HostError: it is neither
    """
    return OriginalDestination() if text == "original" else parse_listening(text)


def listened_at(address: Listening, listener: socket.socket) -> str:
    """The address that is listened on, where port 0 is any that is free."""
    if isinstance(address, PairAddress):
        return f"{PAIR}{listened_at(address.inner, listener)}"
    if isinstance(address, TcpAddress):
        return str(TcpAddress(address.host, listener.getsockname()[1]))
    return str(address)


def tune(connection: socket.socket) -> None:
    """Give a connection room for what is read at once, no delay of small messages, and news of a peer that vanished.

    TCP's buffers the kernel fits to the link. Those of a unix socket take some 220 KB as they are, a little less than
    comes of a full one at once; ones of several MiB do not fit a processor's cache, and cost a third of the rate.
    """
    if connection.family == socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER)
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
