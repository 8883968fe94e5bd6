# SPDX-License-Identifier: GPL-2.0-or-later
"""Sockets in the place of QEMU's: taken, given back, cleared away."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from qmpfilter.daemon import ingress
from qmpfilter.daemon.ingress import Front
from qmpfilter.daemon.nft import Redirect
from qmpfilter.errors import HostError
from qmpfilter.libvirt.incoming import Incoming
from qmpfilter.relay.address import Address, TcpAddress, UnixAddress


def waiting(*where: Address) -> Incoming:
    return Incoming(1, where)


@pytest.fixture
def qemu(tmp_path: Path) -> UnixAddress:
    return UnixAddress(str(tmp_path / "m.sock"))


def test_a_path_is_taken_and_leads_here(qemu: UnixAddress) -> None:
    with qemu.listen() as behind:
        Path(qemu.path).chmod(0o664)
        with Front(waiting(qemu), ()) as front:
            assert (front.listening.shown, front.connect) == (str(qemu), f"{qemu}.qmpfilter")
            assert Path(qemu.path).stat().st_mode & 0o777 == 0o664
            with socket.socket(socket.AF_UNIX) as source, socket.socket(socket.AF_UNIX) as onward:
                source.connect(qemu.path)
                front.listening.sockets[0].accept()[0].close()
                onward.connect(f"{qemu.path}.qmpfilter")
                behind.accept()[0].close()
        # Given back, as nobody wanted it.
        with socket.socket(socket.AF_UNIX) as source:
            source.connect(qemu.path)
            behind.accept()[0].close()


def test_what_is_kept_stays_until_it_is_cleared(qemu: UnixAddress) -> None:
    with qemu.listen():
        with Front(waiting(qemu), ()) as front:
            front.keep()
        here, there = Path(qemu.path), Path(f"{qemu.path}.qmpfilter")
        assert here.exists()
        assert there.exists()
        Front.clear({"listen": "unix:/a", "connect": "unix:/b"})
        Front.clear({"listen": str(qemu), "connect": f"{qemu}.qmpfilter"})
        assert not here.exists()
        assert not there.exists()


def test_a_path_that_qemu_has_again_is_not_cleared(qemu: UnixAddress) -> None:
    with qemu.listen():
        with Front(waiting(qemu), ()):
            pass
        Front.clear({"listen": str(qemu), "connect": f"{qemu}.qmpfilter"})
        assert Path(qemu.path).is_socket()


def test_a_port_is_taken_at_other_addresses() -> None:
    with socket.create_server(("127.0.0.2", 0)) as behind:
        port = behind.getsockname()[1]
        with Front(waiting(TcpAddress("127.0.0.2", port)), ["127.0.0.3", "127.0.0.4"]) as front:
            assert front.connect == f"tcp:127.0.0.2:{port}"
            for host in ("127.0.0.3", "127.0.0.4"):
                socket.create_connection((host, port)).close()


def test_the_port_of_disks_is_taken_too() -> None:
    with socket.create_server(("127.0.0.2", 0)) as behind, socket.create_server(("127.0.0.2", 0)) as disks:
        where = TcpAddress(*behind.getsockname()), TcpAddress(*disks.getsockname())
        with Front(Incoming(1, where[:1], where[1]), ["127.0.0.3"]) as front:
            assert (front.connect, front.storage) == (str(where[0]), str(where[1]))
            taken = [end.getsockname() for end in front.listening.sockets]
            assert taken == [("127.0.0.3", one.port) for one in where]


@pytest.mark.parametrize("where", [TcpAddress("0.0.0.0", 49153), UnixAddress("/disks")], ids=str)
def test_disks_that_come_past_it_are_left_alone(qemu: UnixAddress, where: Address) -> None:
    with qemu.listen(), Front(Incoming(1, (qemu,), where), ["127.0.0.3"]) as front:
        assert (front.storage, len(front.listening.sockets)) == ("", 1)


def test_where_a_source_comes_directly_a_rule_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        monkeypatch.setattr(ingress, "open_listener", lambda: ours)
        with Front(waiting(TcpAddress("0.0.0.0", 49152)), (), nft=True) as front:
            assert front.redirect == Redirect(TcpAddress("0.0.0.0", 49152), ours.getsockname()[1])
            assert (front.listening.shown, front.connect) == ("tcp:0.0.0.0:49152", "tcp:127.0.0.1:49152")
            assert front.listening.sockets == (ours,)
        # Nobody wanted it.
        assert ours.fileno() == -1


def test_with_rules_a_loopback_address_is_taken_as_ever() -> None:
    with socket.create_server(("127.0.0.2", 0)) as behind:
        port = behind.getsockname()[1]
        with Front(waiting(TcpAddress("127.0.0.2", port)), ["127.0.0.3"], nft=True) as front:
            assert (front.redirect, front.listening.shown) == (None, f"tcp:127.0.0.3:{port}")


def test_a_network_that_cannot_be_told() -> None:
    with pytest.raises(HostError, match="in which network that is cannot be told"):
        Front(waiting(TcpAddress("fe80::2", 49152)), (), nft=True)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ((), "listens nowhere"),
        ((TcpAddress("10.0.0.1", 1), TcpAddress("10.0.0.1", 2)), "which of them is for the guest"),
        ((TcpAddress("::", 49152),), "the source reaches it directly"),
        ((UnixAddress("/" + "x" * 100),), "too long a path"),
        ((UnixAddress("/nobody/listens"),), "cannot be taken"),
    ],
)
def test_what_cannot_be_taken_is_said(where: tuple[Address, ...], why: str) -> None:
    with pytest.raises(HostError, match=why):
        Front(waiting(*where), ())


def test_a_port_that_is_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.3", 0)) as somebody:
        port = somebody.getsockname()[1]
        with pytest.raises(HostError, match=f"none of 127.0.0.3 can be listened at on port {port}"):
            Front(waiting(TcpAddress("127.0.0.2", port)), ["127.0.0.3"])
