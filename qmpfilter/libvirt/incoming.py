# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU that waits for a domain, and where it listens, found in /proc: nobody may be asked.

libvirt runs the hook ``started`` when QEMU listens for a migration and the source does not know yet that it may come.
Its own call about this domain would wait for the hook, and its monitor is taken.

Where the guest's disks come too (``--copy-storage-*``), QEMU listens for them apart. It lets as many connections wait
there as the kernel allows, and for the guest itself as many as that has channels.

Sources: proc(5) (cmdline, fd, net/tcp, net/unix); Linux 6.1 include/net/tcp_states.h, include/uapi/linux/net.h;
libvirt 11.3 src/qemu/qemu_command.c (``-uuid``, ``-incoming defer``, sockets that libvirt opened are ``fd=N``),
src/qemu/qemu_migration.c (qemuMigrationDstPrepareActive: both listen before the hook runs); QEMU 10.2.2
blockdev-nbd.c (nbd_server_start), migration/socket.c (socket_start_incoming_migration).
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeGuard

from qmpfilter.errors import HostError
from qmpfilter.libvirt.backlog import Family, backlogs
from qmpfilter.libvirt.listeners import own_listeners
from qmpfilter.relay.address import Address, TcpAddress, UnixAddress

__all__ = ["Incoming", "find_incoming", "is_loopback", "local_addresses"]

_log: Final = logging.getLogger(__name__)

_LISTENS: Final = "0A"  # tcp_states.h, TCP_LISTEN
_ACCEPTS: Final = 1 << 16  # net.h, __SO_ACCEPTCON
_SOMAXCONN: Final = 4096  # glibc 2.36 bits/socket.h; a kernel may have a lower limit
_FAMILIES: Final = {TcpAddress: Family.TCP, UnixAddress: Family.UNIX}
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")
_NO_LISTENERS: Final = ("fd:", "exec:")  # migration/migration.c: what QEMU reads is open already
_GIVEN: Final = re.compile(r"\bfd=(\d+)\b")


@dataclass(frozen=True, slots=True)
class Incoming:
    """A QEMU that waits for its guest.

    :param listens: where, as far as that is not for its devices, monitors and the like; more than one where storage
        comes too, and which is for that cannot be told
    :param storage: where it waits for the guest's disks
    """

    pid: int
    listens: tuple[Address, ...]
    storage: Address | None = None

    @property
    def places(self) -> tuple[Address, ...]:
        """All where a source comes."""
        return self.listens if self.storage is None else (*self.listens, self.storage)


def find_incoming(
    uuid: str, ports: Collection[int] = (), paths: Collection[str] = (), proc: Path = Path("/proc")
) -> Incoming | None:
    """The QEMU of a domain that was started to take a migration; None if there is none.

    :param ports: on which its devices listen
    :param paths: of sockets of its devices
    :raises HostError: it is there, and may not be looked into, or is in another network
    """
    for process in proc.iterdir():
        arguments = _arguments(process) if process.name.isdigit() else []
        if _follows(arguments, "-uuid", uuid) and "-incoming" in arguments:
            return _incoming(process, arguments, ports, paths)
    return None


def _arguments(process: Path) -> list[str]:
    try:
        return process.joinpath("cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        # It has ended meanwhile.
        return []


def _follows(arguments: list[str], option: str, value: str) -> bool:
    return option in arguments and arguments[arguments.index(option) + 1 :][:1] == [value]


def _incoming(process: Path, arguments: list[str], ports: Collection[int], paths: Collection[str]) -> Incoming:
    if arguments[arguments.index("-incoming") + 1].startswith(_NO_LISTENERS):
        return Incoming(int(process.name), ())
    own = own_listeners(arguments)
    given = {number for argument in arguments for number in _GIVEN.findall(argument)}
    try:
        network = (process.parent / "self/ns/net").readlink()
        if process.joinpath("ns/net").readlink() != network:
            raise HostError(f"the domain's QEMU, process {process.name}, is in another network than this daemon")
        sockets = {
            match.group(1)
            for descriptor in os.listdir(process / "fd")
            if descriptor not in given and (match := _SOCKET.fullmatch(_target(process / "fd" / descriptor)))
        }
        listens = {
            int(inode): address
            for inode, address in _listening(process / "net")
            if inode in sockets and not _is_of_device(address, {*ports, *own.ports}, {*paths, *own.paths})
        }
    except OSError as error:
        raise HostError(
            f"the domain's QEMU, process {process.name}, may not be looked into: {error.strerror or error}"
        ) from error
    return _told_apart(int(process.name), listens, process.parent)


def _told_apart(pid: int, listens: Mapping[int, Address], proc: Path) -> Incoming:
    """What it listens at, for its guest and for disks.

    :param listens: where a QEMU listens, by inode
    """
    if len(listens) == 2:
        try:
            known = backlogs({_FAMILIES[type(address)] for address in listens.values()})
            guest, storage = sorted(listens, key=known.__getitem__)
            most = min(_SOMAXCONN, int((proc / "sys/net/core/somaxconn").read_text()))
        except (OSError, KeyError, ValueError) as error:
            _log.warning("how many connections may wait for the QEMU of process %d cannot be told: %s", pid, error)
        else:
            # Both were told the same address.
            together = is_loopback(listens[guest]) == is_loopback(listens[storage])
            if known[guest] < most <= known[storage] and together:
                return Incoming(pid, (listens[guest],), listens[storage])
    return Incoming(pid, tuple(listens.values()))


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:
        # Closed since it was listed.
        return ""


def _is_of_device(address: Address, ports: Collection[int], paths: Collection[str]) -> bool:
    return address.path in paths if isinstance(address, UnixAddress) else address.port in ports


def _listening(net: Path) -> Iterator[tuple[str, Address]]:
    """Inodes and addresses of all sockets of a network that listen."""
    for table in ("tcp", "tcp6"):
        for row in _rows(net / table):
            if row[3] == _LISTENS:
                host, _, port = row[1].rpartition(":")
                yield row[9], TcpAddress(_host(host), int(port, 16))
    for row in _rows(net / "unix"):
        if len(row) > 7 and int(row[3], 16) & _ACCEPTS:
            yield row[6], UnixAddress(row[7])


def _rows(table: Path) -> Iterator[list[str]]:
    try:
        text = table.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        # A kernel without IPv6.
        return
    for line in text.splitlines()[1:]:
        yield line.split(maxsplit=7) if table.name == "unix" else line.split()


def _host(text: str) -> str:
    """An address as the kernel prints it: words of 32 bits in the processor's byte order."""
    words = struct.pack(f"={len(text) // 8}I", *(int(text[at : at + 8], 16) for at in range(0, len(text), 8)))
    return str(ipaddress.ip_address(words))


def is_loopback(address: Address | None) -> TypeGuard[TcpAddress]:
    """It is one of TCP, and only programs of this host reach it."""
    try:
        return isinstance(address, TcpAddress) and ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def local_addresses(proc: Path = Path("/proc")) -> list[str]:
    """This host's own addresses by which others reach it: none of loopback, and none that needs a zone."""
    found: list[str] = []
    leaf = ""
    try:
        for line in (proc / "self/net/fib_trie").read_text().splitlines():
            # Below a leaf are its routes: several where an address is on several interfaces.
            if "|-- " in line:
                leaf = line.rpartition("-- ")[2]
            elif "/32 host LOCAL" in line:
                found.append(leaf)
    except FileNotFoundError:
        pass
    found += [
        str(ipaddress.ip_address(bytes.fromhex(row.split()[0])))
        for row in ((proc / "self/net/if_inet6").read_text().splitlines() if _has_ipv6(proc) else ())
    ]
    seen = (ipaddress.ip_address(one) for one in dict.fromkeys(found))
    return [str(one) for one in seen if not (one.is_loopback or one.is_link_local)]


def _has_ipv6(proc: Path) -> bool:
    return (proc / "self/net/if_inet6").exists()
