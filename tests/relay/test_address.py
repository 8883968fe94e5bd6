# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses as QEMU writes them."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from qmpfilter.errors import DeadlineError, HostError
from qmpfilter.relay.address import (
    Address,
    PairAddress,
    TcpAddress,
    UnixAddress,
    listening,
    parse_address,
    parse_destination,
    parse_listening,
)
from qmpfilter.relay.deadline import Deadline


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:127.0.0.1:4444", TcpAddress("127.0.0.1", 4444)),
        ("tcp:[::1]:4444", TcpAddress("::1", 4444)),
        ("tcp::4444", TcpAddress("", 4444)),
        ("unix:/run/a:b", UnixAddress("/run/a:b")),
    ],
)
def test_read_and_written(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("inner", [TcpAddress("::1", 4444), UnixAddress("/run/a:b")])
def test_where_another_filter_is(inner: Address) -> None:
    assert parse_listening(f"pair:{inner}") == parse_destination(f"pair:{inner}") == PairAddress(inner)
    assert str(PairAddress(inner)) == f"pair:{inner}"
    assert parse_listening(str(inner)) == parse_destination(str(inner)) == inner
    for text in (f"pair:pair:{inner}", "pair:", "pair:original"):
        with pytest.raises(HostError, match="tcp:HOST:PORT or unix:PATH"):
            parse_destination(text)


@pytest.mark.parametrize(
    "text", ["", "tcp:host", "tcp:host:", "tcp:host:x", "tcp:h:65536", "unix:", "exec:cat", "fd:3"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(HostError, match="tcp:HOST:PORT or unix:PATH"):
        parse_address(text)


@pytest.fixture(params=["unix", "tcp"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[socket.socket, Address]:
    if request.param == "unix":
        path = UnixAddress(str(tmp_path / "s"))
        return path.listen(), path
    opened = TcpAddress("127.0.0.1", 0).listen()
    return opened, TcpAddress("127.0.0.1", opened.getsockname()[1])


def test_connecting(listener: tuple[socket.socket, Address]) -> None:
    opened, address = listener
    with opened, address.connect(Deadline(5, "connecting")) as there, opened.accept()[0] as here:
        there.sendall(b"hello")
        assert here.recv(5) == b"hello"


def test_nobody_there(listener: tuple[socket.socket, Address]) -> None:
    opened, address = listener
    opened.close()
    with pytest.raises(HostError, match="cannot connect to"):
        address.connect(Deadline(5, "connecting"))


def test_a_socket_in_use_is_left_alone_and_not_touched(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "s"))
    with address.listen() as waiting:
        with pytest.raises(HostError, match="cannot listen on"):
            address.listen()
        waiting.setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting.accept()


@pytest.mark.parametrize("pair", ["", "pair:"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_path_goes_with_its_socket(tmp_path: Path, pair: str, closed: bool) -> None:
    path = tmp_path / "s"
    with suppress(KeyError), listening(parse_listening(f"{pair}unix:{path}")) as opened:
        path.chmod(0o666)
        if closed:
            opened.close()
        raise KeyError
    assert not path.exists()
    assert opened.fileno() == -1


def test_a_path_that_is_anothers_by_now_stays(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "s"))
    with listening(address) as opened:
        opened.close()
        other = address.listen()
    with other, address.connect(Deadline(5, "connecting")):
        pass
    with listening(address):
        (tmp_path / "s").unlink()
    assert not (tmp_path / "s").exists()


def test_a_left_over_socket_is_replaced_and_private(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "s"))
    address.listen().close()
    with address.listen():
        assert os.stat(address.path).st_mode & 0o777 == 0o600


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(HostError):
        UnixAddress(str(path)).listen()
    assert path.read_text() == "precious"


def test_a_deadline_that_has_passed() -> None:
    with pytest.raises(DeadlineError, match="connecting took longer than 0 s"):
        Deadline(0, "connecting").remaining()
