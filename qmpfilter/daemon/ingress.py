# SPDX-License-Identifier: GPL-2.0-or-later
"""What is put before a QEMU that waits for its guest, so that the source comes here first.

Three ways, by where QEMU listens. A unix socket is renamed, and its path taken; what QEMU listens on is the socket
and not its name. Where QEMU waits at a loopback address (``migration_address`` in libvirt's qemu.conf, or
``--listen-address``), the same port of this host's own addresses is taken: libvirt tells the source that port. Where
it waits at others, sources reach it directly; if wanted, rules of nftables (:mod:`qmpfilter.daemon.nft`) bring them
to a port of the daemon's own.

The guest's disks come to a port of their own. Where that waits at a loopback address too, it is taken in the same way
and led through; elsewhere sources reach it past the filter.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qmpfilter.daemon.nft import Redirect, open_listener
from qmpfilter.daemon.roster import Bound
from qmpfilter.errors import HostError
from qmpfilter.libvirt.incoming import Incoming, is_loopback, local_addresses
from qmpfilter.relay.address import Address, TcpAddress, UnixAddress

__all__ = ["Front"]

_log: Final = logging.getLogger(__name__)

_MOVED: Final = ".qmpfilter"
_LONGEST_PATH: Final = 107  # unix(7): sun_path, without its end


class Front:
    """Listening sockets in the place of one of QEMU's. Use as a context manager: left without :meth:`keep`, all is
    as it was.

    :param addresses: at which a port is taken, all of this host if there are none
    :param nft: rules may bring a source that goes to QEMU directly
    :ivar listening: where the source comes
    :ivar connect: where QEMU waits
    :ivar storage: where it waits for the guest's disks, if the source brings them here; empty if not
    :ivar redirect: the rule that this takes, which is not set here; None if it takes none
    :raises HostError: it cannot be put there; says why
    """

    def __init__(self, incoming: Incoming, addresses: Sequence[str], *, nft: bool = False) -> None:
        where = _only(incoming)
        self._restore: tuple[str, str] | None = None
        self._kept = False
        self.redirect: Redirect | None = None
        self.storage = ""
        sockets: list[socket.socket] = []
        try:
            if isinstance(where, UnixAddress):
                self.connect = str(self._take_path(where.path, sockets))
                shown = str(where)
            elif nft and not is_loopback(where):
                self.redirect = _lead_here(where, sockets)
                self.connect = str(self.redirect.behind)
                shown = str(where)
            else:
                self.connect = str(where)
                shown = _take_port(where, addresses, sockets)
            if is_loopback(incoming.storage):
                _take_port(incoming.storage, addresses, sockets)
                self.storage = str(incoming.storage)
        except (HostError, OSError):
            self._close(sockets)
            raise
        self.listening = Bound(shown, tuple(sockets))

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept:
            for one in self.listening.sockets:
                one.close()
        else:
            self._close(self.listening.sockets)

    def keep(self) -> None:
        """Somebody else has the sockets now."""
        self._kept = True

    @staticmethod
    def clear(report: Mapping[str, Any]) -> None:
        """Remove what a session leaves that was put before a unix socket. Where QEMU has its path again, nothing is.

        :param report: the session's
        """
        here, there = (UnixAddress(str(report.get(key, "")).removeprefix("unix:")) for key in ("listen", "connect"))
        if there.path != f"{here.path}{_MOVED}" or not os.path.lexists(there.path):
            return
        for path in (here.path, there.path):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)

    def _take_path(self, path: str, sockets: list[socket.socket]) -> UnixAddress:
        moved = f"{path}{_MOVED}"
        if len(os.fsencode(moved)) > _LONGEST_PATH:
            raise HostError(f"unix:{path}: too long a path to be taken: {_LONGEST_PATH - len(_MOVED)} bytes at most")
        try:
            before = os.stat(path)
            os.rename(path, moved)
            self._restore = moved, path
            sockets.append(UnixAddress(path).listen())
            # Whoever was to reach QEMU is to reach this.
            os.chown(path, before.st_uid, before.st_gid)
            os.chmod(path, stat.S_IMODE(before.st_mode))
        except OSError as error:
            raise HostError(f"unix:{path}: cannot be taken: {error.strerror or error}") from error
        return UnixAddress(moved)

    def _close(self, sockets: Sequence[socket.socket]) -> None:
        for one in sockets:
            one.close()
        if self._restore is not None:
            with contextlib.suppress(OSError):
                os.rename(*self._restore)


def _only(incoming: Incoming) -> Address:
    if len(incoming.listens) == 1:
        return incoming.listens[0]
    if not incoming.listens:
        raise HostError(f"the domain's QEMU, process {incoming.pid}, listens nowhere")
    shown = ", ".join(map(str, incoming.listens))
    raise HostError(
        f"the domain's QEMU listens at {shown}, and which of them is for the guest cannot be told: use a relay at "
        "the source, or one that rules of nftables lead to"
    )


def _take_port(where: TcpAddress, addresses: Sequence[str], sockets: list[socket.socket]) -> str:
    if not is_loopback(where):
        raise HostError(
            f"the domain's QEMU listens at {where}, where the source reaches it directly: set ingress.nft to true, "
            "or migration_address in qemu.conf to a loopback address, 127.0.0.2"
        )
    wanted = list(addresses) or local_addresses()
    if not wanted:
        raise HostError("this host has no address of its own where a source could come: set ingress.addresses")
    for host in wanted:
        try:
            sockets.append(TcpAddress(host, where.port).listen())
        except HostError as error:
            # One that is enough may be there: an address may belong to an interface that is down.
            _log.warning("%s", error)
    if not sockets:
        raise HostError(f"none of {', '.join(wanted)} can be listened at on port {where.port}")
    return str(TcpAddress(wanted[0] if len(wanted) == 1 else "", where.port))


def _lead_here(where: TcpAddress, sockets: list[socket.socket]) -> Redirect:
    host = ipaddress.ip_address(where.host)
    if host.version == 6 and host.is_link_local:
        raise HostError(f"the domain's QEMU listens at {where}, and in which network that is cannot be told")
    sockets.append(open_listener())
    return Redirect(where, sockets[0].getsockname()[1])
