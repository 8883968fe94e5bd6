# SPDX-License-Identifier: GPL-2.0-or-later
"""Which way the stream takes, and what libvirt is told of it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.errors import HostError
from qmpfilter.libvirt import route
from qmpfilter.libvirt.options import Flag
from qmpfilter.libvirt.route import (
    PORTS,
    check_source_is_here,
    choose_route,
    parse_onward,
    without_questions,
)
from qmpfilter.relay.address import Address, PairAddress, TcpAddress, UnixAddress

ELSEWHERE = "192.0.2.9"


def chosen(
    desturi: str,
    flags: Flag = Flag.LIVE,
    wanted: dict[str, Any] | None = None,
    listen: Address | None = None,
    onward: Address | PairAddress | None = None,
) -> route.Route:
    way, listener = choose_route(desturi, flags, wanted or {}, listen, onward)
    listener.close()
    return way


@pytest.mark.parametrize(
    "desturi", ["qemu:///system", "qemu+unix:///session?socket=/x", "qemu+ssh://localhost/system"]
)
def test_to_this_host_another_address_of_the_same_port(desturi: str) -> None:
    way = chosen(desturi)
    assert isinstance(way.listen, TcpAddress)
    port = way.listen.port
    assert port in PORTS
    assert (str(way.listen), str(way.onward)) == (f"tcp:127.0.0.2:{port}", f"tcp:127.0.0.1:{port}")
    assert way.parameters == {"migrate_uri": f"tcp://127.0.0.2:{port}", "listen_address": "127.0.0.1"}


def test_to_another_host_the_same_port_there() -> None:
    way = chosen(f"qemu+ssh://root@{ELSEWHERE}/system", wanted={"bandwidth": 9})
    assert isinstance(way.listen, TcpAddress)
    assert str(way.onward) == f"tcp:{ELSEWHERE}:{way.listen.port}"
    assert way.parameters == {"bandwidth": 9, "migrate_uri": f"tcp://127.0.0.2:{way.listen.port}"}


def test_what_the_operator_says_holds() -> None:
    way = chosen(
        "qemu:///system", wanted={"listen_address": "127.0.0.3"}, onward=TcpAddress("127.0.0.3", PORTS[0] - 1)
    )
    assert str(way.onward) == f"tcp:127.0.0.3:{PORTS[0] - 1}"
    assert way.parameters == {"migrate_uri": f"tcp://127.0.0.2:{PORTS[0] - 1}", "listen_address": "127.0.0.3"}
    way = chosen(f"qemu://{ELSEWHERE}/system", listen=TcpAddress("::1", 0), onward=TcpAddress("2001:db8::9", 0))
    assert isinstance(way.listen, TcpAddress)
    assert str(way.onward) == f"tcp:[2001:db8::9]:{way.listen.port}"
    assert way.parameters["migrate_uri"] == f"tcp://[::1]:{way.listen.port}"


@pytest.mark.parametrize(("wanted", "listen"), [({}, "127.0.0.1"), ({"listen_address": "127.0.0.3"}, "127.0.0.3")])
def test_where_another_filter_is_the_destinations_qemu_waits_behind_it(wanted: dict[str, Any], listen: str) -> None:
    way = chosen(f"qemu://{ELSEWHERE}/system", wanted=wanted, onward=PairAddress(TcpAddress(ELSEWHERE, 0)))
    assert isinstance(way.listen, TcpAddress)
    port = way.listen.port
    assert str(way.onward) == f"pair:tcp:{ELSEWHERE}:{port}"
    assert way.parameters == {"migrate_uri": f"tcp://127.0.0.2:{port}", "listen_address": listen}


@pytest.mark.parametrize(
    ("wanted", "disks"),
    [({}, None), ({"disks_port": 5}, f"tcp://{ELSEWHERE}:5"), ({"disks_uri": "tcp://b:6"}, "tcp://b:6")],
)
def test_disks_go_to_the_destination_itself(wanted: dict[str, Any], disks: str | None) -> None:
    way = chosen(f"qemu://{ELSEWHERE}/system", Flag.NON_SHARED_DISK, wanted)
    told = way.parameters["disks_uri"]
    assert told == disks if disks else parse_onward(told).port in set(PORTS)  # type: ignore[union-attr]  # a TCP address
    assert told != f"tcp://{way.onward}"
    assert "disks_port" not in way.parameters


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(route, "PORTS", range(port, port + 1))
        with pytest.raises(HostError, match=f"no port from {port} to {port} is free"):
            chosen("qemu:///system")


def test_over_unix_sockets(tmp_path: Path) -> None:
    way = chosen("qemu:///system", listen=UnixAddress(f"{tmp_path}/relay"), onward=UnixAddress("/to"))
    assert way.parameters == {"migrate_uri": f"unix://{tmp_path}/relay"}
    for listen, onward in ((None, UnixAddress("/to")), (UnixAddress("/at"), None)):
        with pytest.raises(HostError, match="both ends have to be told"):
            chosen("qemu:///system", listen=listen, onward=onward)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://b:5", TcpAddress("b", 5)),
        ("tcp://b", TcpAddress("b", 0)),
        ("tcp://[2001:db8::9]:5", TcpAddress("2001:db8::9", 5)),
        ("tcp:b:5", TcpAddress("b", 5)),
        ("unix:///a/b", UnixAddress("/a/b")),
        ("unix:/a/b", UnixAddress("/a/b")),
        ("pair:tcp://b:5", PairAddress(TcpAddress("b", 5))),
        ("pair:unix:/a/b", PairAddress(UnixAddress("/a/b"))),
    ],
)
def test_where_the_destination_is(text: str, address: Address | PairAddress) -> None:
    assert parse_onward(text) == address


@pytest.mark.parametrize("text", ["rdma://b:5", "tcp://", "tcp://b:x", "unix://", "b:5", ""])
def test_what_is_nowhere(text: str) -> None:
    with pytest.raises(HostError):
        parse_onward(text)


def test_the_source_is_on_this_host() -> None:
    check_source_is_here("qemu:///system")
    with pytest.raises(HostError, match="run qmpfilter there"):
        check_source_is_here("qemu+ssh://elsewhere/system")


@pytest.mark.parametrize(
    ("uri", "quiet"),
    [
        ("qemu:///system", "qemu:///system"),
        ("qemu+ssh://b/system", "qemu+ssh://b/system?no_tty=1"),
        ("qemu+libssh2://b/system?x=1", "qemu+libssh2://b/system?x=1&no_tty=1"),
    ],
)
def test_a_connection_that_asks_nobody(uri: str, quiet: str) -> None:
    assert without_questions(uri) == quiet
