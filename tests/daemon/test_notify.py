# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon as a service: what it says to its manager, the socket it is given, and how little it may do."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpfilter.daemon.notify import Notifier, inherited_listener
from qmpfilter.errors import HostError
from tests.helpers.daemon import DaemonProcess

SECONDS = 20.0
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.settimeout(SECONDS)
        end.bind(str(tmp_path / "notify"))
        yield end


def told(manager: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def test_from_its_start_to_its_end(manager: socket.socket, tmp_path: Path) -> None:
    """Its control socket was there before it, and is there after it."""
    path = tmp_path / "run" / "control.sock"
    path.parent.mkdir()
    notify = f"NOTIFY_SOCKET={tmp_path / 'notify'}"
    activate = ["systemd-socket-activate", "-l", str(path), "-E", notify, "-E", "PYTHONPATH"]
    with DaemonProcess(tmp_path, before=activate) as daemon:
        assert told(manager) == {"READY": "1", "STATUS": "waits for migrations"}
        daemon.ask("reload")
        assert told(manager).keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert told(manager) == {"READY": "1"}
        daemon.process.terminate()
        assert told(manager) == {"STOPPING": "1", "STATUS": "waits for 0 sessions to end"}
        assert daemon.process.wait(SECONDS) == 0
        assert path.exists()


def test_the_watchdog_is_fed_for_as_long_as_the_loop_turns(manager: socket.socket, tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000", "OTHER": "1"}
    notifier = Notifier(environment)
    # Workers are not to speak for the daemon.
    assert environment == {"OTHER": "1"}

    async def turn() -> None:
        feeding = asyncio.create_task(notifier.feed_watchdog())
        for _ in range(3):
            assert await asyncio.to_thread(told, manager) == {"WATCHDOG": "1"}
        feeding.cancel()

    asyncio.run(turn())


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "@nobody"}])
def test_nobody_listens(environment: dict[str, str]) -> None:
    Notifier(environment).say(READY="1")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())}, "passed 2 sockets"),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, None),
        ({}, None),
    ],
)
def test_what_was_passed_to_whom(environment: dict[str, str], said: str | None) -> None:
    if said is None:
        assert inherited_listener(environment) is None
        return
    with pytest.raises(HostError, match=said):
        inherited_listener(environment)


def test_it_may_do_little() -> None:
    """systemd's own measure, in tenths: 2.5 or better."""
    subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(EXAMPLES / "qmpfilter.service")],
        check=True, capture_output=True, timeout=SECONDS,
    )  # fmt: skip
