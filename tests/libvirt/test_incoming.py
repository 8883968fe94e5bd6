# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs that wait, in a /proc that is made up, and in this machine's own."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from unittest.mock import Mock

import pytest

from qmpfilter.errors import HostError
from qmpfilter.libvirt import incoming
from qmpfilter.libvirt.incoming import Incoming, find_incoming, is_loopback, local_addresses
from qmpfilter.relay.address import Address, TcpAddress, UnixAddress

UUID = "0a7f"
TCP = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def word(host: str) -> str:
    return f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}"


def row(host: str, port: int, inode: int, state: str = "0A") -> str:
    return (
        f"   0: {word(host)}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1\n"
    )


class Proc:
    """Processes with command lines and sockets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._namespace(root / "self")

    def somaxconn(self, limit: int) -> None:
        (self.root / "sys/net/core").mkdir(parents=True)
        (self.root / "sys/net/core/somaxconn").write_text(f"{limit}\n")

    def _namespace(self, process: Path, number: int = 1) -> None:
        (process / "ns").mkdir(parents=True)
        (process / "ns/net").symlink_to(f"net:[{number}]")

    def qemu(
        self, *argv: str, pid: int = 7, sockets: dict[int, int], tcp: str = "", unix: str = "", net: int = 1
    ) -> None:
        process = self.root / str(pid)
        self._namespace(process, net)
        (process / "cmdline").write_bytes("\0".join(["qemu-system-x86_64", *argv, ""]).encode())
        (process / "fd").mkdir()
        for descriptor, inode in sockets.items():
            (process / "fd" / str(descriptor)).symlink_to(f"socket:[{inode}]")
        (process / "net").mkdir()
        (process / "net/tcp").write_text(TCP + tcp)
        (process / "net/unix").write_text(f"Num RefCount Protocol Flags Type St Inode Path\n{unix}")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


WAITING = ("-uuid", UUID, "-incoming", "defer")


def test_where_it_waits(proc: Proc) -> None:
    proc.qemu("-uuid", UUID, pid=5, sockets={3: 30}, tcp=row("127.0.0.2", 49152, 30))
    proc.qemu("-uuid", "ffff", "-incoming", "defer", pid=6, sockets={3: 30}, tcp=row("127.0.0.2", 49152, 30))
    proc.qemu(
        *WAITING, "-chardev", "socket,id=mon,fd=9,server=on",
        sockets={3: 30, 4: 40, 5: 50, 9: 90, 10: 100, 11: 110},
        tcp=row("127.0.0.2", 49152, 30) + row("0.0.0.0", 5901, 40) + row("127.0.0.1", 1, 50, "01")
        + row("0.0.0.0", 22, 1),
        unix="0: 00000002 00000000 00010000 0001 01    90 /monitor\n"
        "0: 00000002 00000000 00010000 0001 01 100 /run/m 1.sock\n"
        "0: 00000002 00000000 00010000 0001 01 110 /channel\n"
        "0: 00000003 00000000 00000000 0001 03 120\n",
    )  # fmt: skip
    found = find_incoming(UUID, {5901}, {"/channel"}, proc.root)
    assert found is not None
    assert found.pid == 7
    assert found.listens == (TcpAddress("127.0.0.2", 49152), UnixAddress("/run/m 1.sock"))


NBD, GUEST = TcpAddress("127.0.0.2", 49152), TcpAddress("127.0.0.2", 49153)


@pytest.mark.parametrize(
    ("waiting", "limit", "listens", "storage"),
    [
        ({30: 4096, 31: 1}, 4096, (GUEST,), NBD),
        ({30: 2, 31: 128}, 128, (NBD,), GUEST),
        ({30: 2, 31: 4096}, 65536, (NBD,), GUEST),
        ({30: 128, 31: 128}, 128, (NBD, GUEST), None),
        ({30: 16, 31: 1}, 4096, (NBD, GUEST), None),
        ({30: 128}, 128, (NBD, GUEST), None),
        (PermissionError("no netlink"), 4096, (NBD, GUEST), None),
    ],
    ids=["disks first", "guest first", "more is allowed", "alike", "something else", "one unknown", "not told"],
)
def test_where_it_waits_for_disks(
    proc: Proc, monkeypatch: pytest.MonkeyPatch, waiting: dict[int, int] | OSError, limit: int,
    listens: tuple[Address, ...], storage: Address | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(incoming, "backlogs", Mock(side_effect=[waiting]))
    tcp = row("127.0.0.2", 49152, 30) + row("127.0.0.2", 49153, 31)
    proc.qemu(*WAITING, sockets={3: 30, 4: 31}, tcp=tcp)
    proc.somaxconn(limit)
    assert find_incoming(UUID, proc=proc.root) == Incoming(7, listens, storage)


def test_disks_and_guest_are_told_the_same_address(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "backlogs", Mock(return_value={30: 4096, 31: 1}))
    proc.qemu(*WAITING, sockets={3: 30, 4: 31}, tcp=row("0.0.0.0", 49152, 30) + row("127.0.0.1", 49153, 31))
    proc.somaxconn(4096)
    found = find_incoming(UUID, proc=proc.root)
    assert found is not None
    assert (len(found.listens), found.storage, len(found.places)) == (2, None, 2)


def test_a_descriptor_that_is_closed_meanwhile_hides_no_other(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    proc.qemu(*WAITING, sockets={3: 30}, tcp=row("127.0.0.2", 49152, 30))
    listed = os.listdir
    monkeypatch.setattr("os.listdir", lambda path: [*(["2"] if str(path).endswith("/fd") else []), *listed(path)])
    found = find_incoming(UUID, proc=proc.root)
    assert found is not None
    assert found.listens == (TcpAddress("127.0.0.2", 49152),)


OWN_UNIX = """\
0: 00000002 00000000 00010000 0001 01 40 /run/vm.qmp
0: 00000002 00000000 00010000 0001 01 50 /run/incoming
"""


def test_what_its_command_line_names_is_its_own(proc: Proc) -> None:
    own = ("-qmp", "unix:/run/vm.qmp,server=on,wait=off", "-gdb", "tcp::1234")
    tcp = row("0.0.0.0", 1234, 30)
    proc.qemu(*own, *WAITING, sockets={3: 30, 4: 40, 5: 50}, tcp=tcp, unix=OWN_UNIX)
    found = find_incoming(UUID, proc=proc.root)
    assert found is not None
    assert found.listens == (UnixAddress("/run/incoming"),)


@pytest.mark.parametrize("where", ["fd:9", "exec:cat /image"])
def test_one_that_reads_what_is_open_listens_nowhere(proc: Proc, where: str) -> None:
    proc.qemu("-uuid", UUID, "-incoming", where, sockets={4: 40}, unix=OWN_UNIX)
    found = find_incoming(UUID, proc=proc.root)
    assert found is not None
    assert found.listens == ()


def test_nobody_waits(proc: Proc) -> None:
    proc.qemu("-uuid", UUID, sockets={})
    assert find_incoming(UUID, proc=proc.root) is None


def test_another_network_is_said(proc: Proc) -> None:
    proc.qemu(*WAITING, sockets={}, net=2)
    with pytest.raises(HostError, match="another network"):
        find_incoming(UUID, proc=proc.root)


FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.9.0.0/29 2 0 2
        |-- 10.9.0.1
           /32 host LOCAL
           /32 host LOCAL
        |-- 10.9.0.2
           /32 link UNICAST
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 169.254.7.7
        /32 host LOCAL
     |-- 192.0.2.2
        /32 host LOCAL
Local:
     |-- 192.0.2.2
        /32 host LOCAL
"""


def test_own_addresses_also_one_that_is_on_several_interfaces(tmp_path: Path) -> None:
    (tmp_path / "self/net").mkdir(parents=True)
    (tmp_path / "self/net/fib_trie").write_text(FIB_TRIE)
    assert local_addresses(tmp_path) == ["10.9.0.1", "192.0.2.2"]


def test_this_machine_has_none() -> None:
    assert find_incoming("no such uuid") is None
    assert all(not is_loopback(TcpAddress(host, 1)) for host in local_addresses())


@pytest.mark.parametrize(("host", "is_it"), [("127.0.0.2", True), ("::1", True), ("10.0.0.1", False), ("::", False),
                                             ("name", False)])  # fmt: skip
def test_loopback(host: str, is_it: bool) -> None:
    assert is_loopback(TcpAddress(host, 1)) is is_it
