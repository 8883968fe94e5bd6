# SPDX-License-Identifier: GPL-2.0-or-later
"""How a migration's stream comes from the source through the relay to the destination.

libvirt takes the port from ``migrate_uri`` for both ends, and the address for the source only: the relay listens at
another address of the same port. Source: libvirt 11.3 src/qemu/qemu_migration.c (qemuMigrationDstPrepareDirect,
qemuMigrationSrcNBDStorageCopy), and seen with 9.0 and 11.3.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from qmpfilter.errors import HostError
from qmpfilter.libvirt.options import Flag
from qmpfilter.relay.address import (
    Address,
    Listening,
    PairAddress,
    TcpAddress,
    UnixAddress,
    parse_address,
    parse_listening,
)

__all__ = [
    "PORTS",
    "RELAY_HOST",
    "Route",
    "check_source_is_here",
    "choose_route",
    "parse_onward",
    "without_questions",
]

RELAY_HOST: Final = "127.0.0.2"
"""Of this host, and none that a destination listens at."""

PORTS: Final = range(49216, 49280)
"""Above those of libvirt itself (qemu.conf, migration_port_max)."""

_HERE: Final = "127.0.0.1"
_LOCAL_NAMES: Final = ("localhost", "localhost.localdomain", "127.0.0.1", "::1")
_ANY_PORT: Final = 0


@dataclass(frozen=True, slots=True)
class Route:
    """Where the stream goes.

    :param listen: where the relay is
    :param onward: where the destination is, or the filter before it
    :param parameters: what the operator asked for, and what tells libvirt so
    """

    listen: Address
    onward: Listening
    parameters: dict[str, Any]


def check_source_is_here(uri: str) -> None:
    """:raises HostError: a libvirt is of another host, so its QEMU cannot connect to a relay on this one"""
    host = _split(uri).hostname
    if host is not None and host not in _LOCAL_NAMES:
        raise HostError(f"{uri} is on another host, and the relay has to be beside the source: run qmpfilter there")


def parse_onward(text: str) -> Listening:
    """``tcp://HOST[:PORT]`` or ``unix:///PATH``, as virsh takes them, or an address as QEMU writes it; port 0 where
    it is left open. With ``pair:`` before it another filter is there.

    :raises HostError: it is none, or of a transport that cannot be relayed
    """
    return parse_listening(text, _parse_end)


def _parse_end(text: str) -> Address:
    if "://" not in text:
        return parse_address(text)
    parts = _split(text)
    if parts.scheme == "tcp" and parts.hostname and parts.path in ("", "/"):
        return TcpAddress(parts.hostname, parts.port or _ANY_PORT)
    if parts.scheme == "unix" and parts.path:
        return UnixAddress(parts.path)
    raise HostError(f"{text!r} is nothing that can be relayed to: tcp://HOST[:PORT] or unix:///PATH is")


def without_questions(uri: str) -> str:
    """The same URI, for a connection that asks nobody for a password."""
    parts = _split(uri)
    if "ssh" not in parts.scheme:
        return uri
    return urlunsplit(parts._replace(query=f"{parts.query}&no_tty=1".lstrip("&")))


def choose_route(
    desturi: str,
    flags: Flag,
    wanted: dict[str, Any],
    listen: Address | None,
    onward: Listening | None,
) -> tuple[Route, socket.socket]:
    """The way, and the socket at which the relay listens.

    :param wanted: typed parameters that the operator asked for
    :param listen: where the relay is to be, None for anywhere
    :param onward: where the destination is to be reached, None for where its libvirt is
    :raises HostError: it cannot be listened there, or the two do not fit together
    """
    if isinstance(onward, PairAddress):
        # QEMU leaves its port at the host's own addresses to the filter there.
        at_loopback = {"listen_address": _HERE, **wanted}
        route, listener = choose_route(desturi, flags, at_loopback, listen, onward.inner)
        assert not isinstance(route.onward, PairAddress)
        return replace(route, onward=PairAddress(route.onward)), listener
    if isinstance(listen, UnixAddress) or isinstance(onward, UnixAddress):
        return _over_unix(wanted, listen, onward)
    host = onward.host if onward else _split(desturi).hostname or _HERE
    here = host in _LOCAL_NAMES
    host = _HERE if here else host
    _check_known(host)
    fixed = (listen.port if listen else 0) or (onward.port if onward else 0)
    at = listen.host if listen else RELAY_HOST
    listener, port = (TcpAddress(at, fixed).listen(), fixed) if fixed else _claim(at, here)
    parameters = {**wanted, "migrate_uri": _uri(at, port)}
    if here:
        # The wildcard, libvirt's default, takes in the relay's address.
        parameters.setdefault("listen_address", _HERE)
    if flags & (Flag.NON_SHARED_DISK | Flag.NON_SHARED_INC) and "disks_uri" not in wanted:
        # libvirt would have the source look for it at the relay.
        disks = parameters.pop("disks_port", 0) or _second_port(at, here)
        parameters["disks_uri"] = _uri(host, disks)
    onward_port = onward.port if onward and onward.port else port
    return Route(TcpAddress(at, port), TcpAddress(host, onward_port), parameters), listener


def _over_unix(wanted: dict[str, Any], listen: Address | None, onward: Address | None) -> tuple[Route, socket.socket]:
    if listen is None or onward is None or isinstance(listen, TcpAddress):
        raise HostError(
            "over a unix socket both ends have to be told, and be different: --relay-at unix:PATH for the source, "
            "--migrateuri for where the relay goes on"
        )
    return Route(listen, onward, {**wanted, "migrate_uri": f"unix://{listen.path}"}), listen.listen()


def _claim(host: str, here: bool) -> tuple[socket.socket, int]:
    """A listening socket at a port of the range, from anywhere in it: several migrations begin at once.

    Whoever listens at the relay's address has the port to himself, and nobody else tries the destination's: even to
    try it would be in the way of a QEMU that is about to listen there.

    :raises HostError: none can be had
    """
    first = secrets.randbelow(len(PORTS))
    last: HostError | None = None
    for number in range(len(PORTS)):
        port = PORTS[(first + number) % len(PORTS)]
        try:
            listener = TcpAddress(host, port).listen()
        except HostError as error:
            last = error
            continue
        if not here or _is_free(port):
            return listener, port
        listener.close()
    raise last or HostError(f"no port from {PORTS[0]} to {PORTS[-1]} is free")


def _second_port(host: str, here: bool) -> int:
    """Another, at which nobody listens yet."""
    listener, port = _claim(host, here)
    listener.close()
    return port


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server((_HERE, port)):
        return True
    return False


def _check_known(host: str) -> None:
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise HostError(
            f"the destination's name {host} has no address here ({error.strerror or error}): say with --migrateuri "
            "tcp://HOST where its migration network is"
        ) from error


def _uri(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _split(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise HostError(f"{uri!r}: {error}") from error
    return parts
