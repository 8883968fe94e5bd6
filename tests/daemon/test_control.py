# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: whatever is said there, one line comes back, and nothing else happens."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.daemon import control
from qmpfilter.daemon.client import ask
from qmpfilter.daemon.control import MOST, Control, Request
from qmpfilter.errors import BugError, HostError, PolicyError

SECONDS = 10.0


async def echo(request: Request) -> dict[str, Any]:
    answer = {"text": request.text("text"), "flag": request.flag("flag", False), "count": request.count("count", 7)}
    request.end()
    return answer


async def forbid(_: Request) -> dict[str, Any]:
    raise PolicyError("not that")


async def stumble(_: Request) -> dict[str, Any]:
    raise KeyError("surprise")


async def fail(_: Request) -> dict[str, Any]:
    raise PermissionError(13, "Permission denied", "/a/file")


async def dawdle(_: Request) -> dict[str, Any]:
    await asyncio.sleep(SECONDS)
    return {}


gone = threading.Event()


async def outlast(request: Request) -> dict[str, Any]:
    """Until whoever asked has gone."""
    while True:
        await asyncio.sleep(0.001)
        try:
            request.check_waited_for()
        except HostError:
            gone.set()
            return {}


async def heed(request: Request) -> dict[str, Any]:
    request.check_waited_for()
    return {}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Of a socket on which all these are offered."""
    operations = {one.__name__: one for one in (echo, forbid, stumble, fail, dawdle, outlast, heed)}
    where = tmp_path / "control.sock"
    ready = threading.Event()
    ways: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        offered = Control(str(where), operations)
        await offered.start()
        over = asyncio.Event()
        ways.append((asyncio.get_running_loop(), over))
        ready.set()
        await over.wait()
        await offered.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert ready.wait(SECONDS)
    yield where
    loop, over = ways[0]
    loop.call_soon_threadsafe(over.set)
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert not where.exists()


def say(path: Path, data: bytes) -> list[dict[str, Any]]:
    """All that comes back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(str(path))

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        came = b""
        while part := connection.recv(1 << 16):
            came += part
        sender.join(SECONDS)
    return [json.loads(line) for line in came.splitlines()]


def test_only_its_owner_may_connect(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_answer(path: Path) -> None:
    assert ask(path, "echo", text="hm", flag=True) == {"text": "hm", "flag": True, "count": 7}


def test_several_requests_on_one_connection(path: Path) -> None:
    lines = b"".join(b'{"op": "echo", "text": "%d"}\n' % number for number in range(3))
    assert [answer["text"] for answer in say(path, lines)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\n", "no JSON"),
        (b"hello\n", "no JSON"),
        (b"\xff\xfe\n", "no JSON"),
        (b'{"op": "echo", "text": "x"', "no JSON"),
        (b"[" * 100_000 + b"\n", "no JSON"),
        (b"[]\n", "no JSON object"),
        (b"{}\n", "op is missing"),
        (b'{"op": 3}\n', "op: a text was expected, found 3"),
        (b'{"op": "lunch"}\n', "no such op: 'lunch'; there are echo, forbid"),
        (b'{"op": "echo"}\n', "text is missing"),
        (b'{"op": "echo", "text": "x", "flag": 1}\n', "flag: true or false was expected, found 1"),
        (
            b'{"op": "echo", "text": "x", "count": -1}\n',
            "count: a number that is not negative was expected, found -1",
        ),
        (b'{"op": "echo", "text": "x", "count": true}\n', "count: a number that is not negative"),
        (b'{"op": "echo", "text": "x", "more": 1}\n', "not understood: more"),
        (b'{"op": "echo", "text": "' + b"x" * MOST + b'"}\n', f"a request may have {MOST} bytes and no more"),
        (b"x" * (3 * MOST), f"a request may have {MOST} bytes and no more"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else "",
)
def test_requests_that_are_none(path: Path, line: bytes, said: str) -> None:
    (answer,) = say(path, line)
    assert said in answer["error"]
    assert answer["blame"] == "host"
    assert ask(path, "echo", text="still there")["text"] == "still there"


@pytest.mark.parametrize(
    ("op", "error", "said"),
    [
        ("forbid", PolicyError, "not that"),
        ("stumble", BugError, "KeyError: 'surprise'"),
        ("fail", HostError, "Permission denied"),
    ],
)
def test_what_goes_wrong_is_told(path: Path, op: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        ask(path, op)


def test_whoever_says_nothing_is_sent_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_REQUEST_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(str(path))
        connection.sendall(b'{"op"')
        assert json.loads(connection.recv(1000))["error"] == "no request within 0.1 s"
        assert connection.recv(1000) == b""


def test_what_takes_too_long_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_OPERATION_SECONDS", 0.1)
    with pytest.raises(HostError, match=r"nothing came of it within 0\.1 s"):
        ask(path, "dawdle")


def test_an_operation_can_tell_that_nobody_waits_for_it(path: Path) -> None:
    gone.clear()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b'{"op": "outlast"}\n')
    assert gone.wait(SECONDS)


def test_one_that_says_no_more_still_waits(path: Path) -> None:
    assert say(path, b'{"op": "heed"}\n' * 2) == [{}, {}]


def test_other_users_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control._Peer, "may_ask", False)
    with pytest.raises(HostError, match="only root and the daemon's own user may ask"):
        ask(path, "echo", text="x")


@pytest.mark.parametrize(
    ("uid", "own", "may"), [(0, 1000, True), (1000, 1000, True), (1001, 1000, False), (1000, 0, False)]
)
def test_who_may_ask(uid: int, own: int, may: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Peer:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
            return control._UCRED.pack(1, uid, 0)[:size]

    monkeypatch.setattr(os, "geteuid", lambda: own)
    assert control._Peer.of(Peer()).may_ask is may  # type: ignore[arg-type]  # as a socket answers


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"no daemon answers at .*: start it with 'qmpfilter run'"):
        ask(tmp_path / "control.sock", "status")


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(path: Path, tmp_path: Path) -> None:
    async def start(where: Path) -> None:
        offered = Control(str(where), {})
        await offered.start()
        await offered.close()

    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    asyncio.run(start(stale))
    with pytest.raises(HostError, match="cannot listen on"):
        asyncio.run(start(path))
    assert ask(path, "echo", text="x")["text"] == "x"
