# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of nftables that bring what is for a QEMU's port to a port of the daemon's own; the program that sets them.

The kernel hands new connections over as they come (TPROXY): no address and no port of a packet is changed. So a
firewall that lets sources in to QEMU's port lets them in here, and what is connected needs no rule any more. What
this host sends to itself comes by way of its loopback interface and is passed over: a worker's connection to QEMU is
such. Packets for other hosts, which this one routes or bridges, are passed over too.

A rule holds while QEMU's port is in the set ``waiting``, whose elements time out by themselves. Where a rule holds
and nobody listens at the daemon's port any more, the source is refused and goes on with its guest.

Sources: nft(8) (TPROXY STATEMENT, FIB EXPRESSIONS, SETS); Linux 6.18 Documentation/networking/tproxy.rst,
net/netfilter/nft_tproxy.c, net/ipv4/netfilter/nf_tproxy_ipv4.c; libvirt 11.3 src/qemu/qemu_migration.c (where QEMU
listens when it is not told).
"""

from __future__ import annotations

import ipaddress
import math
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from qmpfilter.errors import DeadlineError, HostError
from qmpfilter.relay.address import TcpAddress

__all__ = ["DROP_IN", "Redirect", "apply", "open_listener", "rules"]

DROP_IN: Final = "examples/systemd/qmpfilter.service.d/nft-ingress.conf"

_TABLE: Final = "inet qmpfilter"
_SECONDS: Final = 3.0
_BACKLOG: Final = 64
_SHOWN: Final = 300
_PROTOCOLS: Final = {4: "ip", 6: "ip6"}
# Not every PATH of a user has where Debian keeps it.
_BESIDES: Final = "/usr/sbin:/sbin"
# What it says without the capability, and where systemd keeps it from netlink.
_FORBIDDEN: Final = ("Operation not permitted", "Permission denied", "Address family not supported")
# What it says of an expression whose part of the kernel is not there.
_LACKING: Final = (
    "Could not process rule: No such file or directory",
    "Could not process rule: Operation not supported",
)
_FRAME: Final = f"""\
add table {_TABLE}
add set {_TABLE} waiting {{ type inet_service; flags timeout; }}
add chain {_TABLE} prerouting {{ type filter hook prerouting priority mangle; policy accept; }}
flush chain {_TABLE} prerouting
flush set {_TABLE} waiting
add rule {_TABLE} prerouting iif lo accept
"""
_GONE: Final = f"add table {_TABLE}\ndelete table {_TABLE}\n"


@dataclass(frozen=True, slots=True)
class Redirect:
    """What is for one QEMU comes to the daemon.

    :param where: QEMU listens: all addresses of this host or one that is its own, as numbers
    :param port: of the daemon's own
    """

    where: TcpAddress
    port: int

    @property
    def behind(self) -> TcpAddress:
        """Where QEMU is reached from this host, past the rules."""
        host = _ip(self.where)
        if not host.is_unspecified:
            return TcpAddress(str(host), self.where.port)
        # QEMU's [::] takes IPv4 too, and which loopback address there is depends on the host: both are tried.
        return TcpAddress("127.0.0.1" if host.version == 4 else "", self.where.port)

    def matches(self) -> Iterator[tuple[str, str]]:
        """By protocol (``ip``, ``ip6``) what of a packet tells that it is for QEMU."""
        host = _ip(self.where)
        port = f"tcp dport {self.where.port} tcp dport @waiting"
        if not host.is_unspecified:
            yield _PROTOCOLS[host.version], f"{_PROTOCOLS[host.version]} daddr {host} {port}"
            return
        for version in sorted(_versions(host)):
            yield _PROTOCOLS[version], f"meta nfproto ipv{version} fib daddr type local {port}"

    def overlaps(self, place: TcpAddress) -> bool:
        """Two sockets could not listen at both."""
        one, other = _ip(self.where), _ip(place)
        shared = _versions(one) & _versions(other) if one.is_unspecified or other.is_unspecified else one == other
        return self.where.port == place.port and bool(shared)


def _ip(address: TcpAddress) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    host = ipaddress.ip_address(address.host)
    return host if host.version == 4 or host.ipv4_mapped is None else host.ipv4_mapped


def _versions(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> set[int]:
    """Of IP, that a socket which listens there takes; QEMU has its [::] take both."""
    return {4, 6} if host.version == 6 and host.is_unspecified else {host.version}


def rules(redirects: Mapping[Redirect, float]) -> str:
    """What makes just these hold, whatever held before; nft does all of it at once or nothing.

    :param redirects: with the seconds after which each ends by itself
    """
    if not redirects:
        return _GONE
    lines = []
    seconds: dict[int, int] = {}
    for redirect, left in redirects.items():
        port = redirect.where.port
        seconds[port] = max(seconds.get(port, 1), math.ceil(left))
        for protocol, match in redirect.matches():
            lines.append(f"{match} tproxy {protocol} to :{redirect.port} accept")
            lines.append(f"{match} reject with tcp reset")
    waiting = ", ".join(f"{port} timeout {left}s" for port, left in seconds.items())
    added = "".join(f"add rule {_TABLE} prerouting {line}\n" for line in lines)
    return f"{_FRAME}add element {_TABLE} waiting {{ {waiting} }}\n{added}"


def apply(script: str, path: str | None = None) -> None:
    """Have nft do what a script says.

    :param path: where programs are looked for; None for the environment's PATH, and where root's are
    :raises HostError: nft is missing, may not do it, or says that it cannot be done
    :raises DeadlineError: it did not end in time, and may have done it all the same
    """
    program = shutil.which("nft", path=f"{os.environ.get('PATH') or os.defpath}:{_BESIDES}" if path is None else path)
    if program is None:
        raise HostError("the program nft is missing: install nftables, or set ingress.nft to false")
    try:
        done = subprocess.run(
            [program, "-f", "-"],
            input=script, capture_output=True, text=True, errors="replace", timeout=_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"{program} did not end within {_SECONDS:g} s") from None
    except OSError as error:
        raise HostError(f"{program} cannot be run: {error.strerror or error}") from error
    if done.returncode == 0:
        return
    said = " ".join(done.stderr.split())[:_SHOWN] or f"it ended with status {done.returncode}"
    if any(one in said for one in _FORBIDDEN):
        raise HostError(f"{program}: {said}: this takes CAP_NET_ADMIN; for the service, {DROP_IN}")
    if any(one in said for one in _LACKING):
        raise HostError(f"{program}: {said}: the kernel has to have nft_tproxy, nft_fib_inet and nft_reject_inet")
    raise HostError(f"{program}: {said}")


def open_listener() -> socket.socket:
    """A socket that listens at a port of its own on all addresses, and to which rules may bring what is for others.

    :raises HostError: it cannot be made
    """
    family = socket.AF_INET6 if (both := socket.has_dualstack_ipv6()) else socket.AF_INET
    try:
        listener = socket.create_server(("", 0), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise HostError(f"no port of its own can be listened at: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
    except OSError as error:
        listener.close()
        raise HostError(
            f"a socket cannot take what is for others: {error.strerror or error}: this takes CAP_NET_ADMIN; for the "
            f"service, {DROP_IN}"
        ) from error
    return listener
