# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP sessions: every failure one sentence, nothing without an end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.errors import DeadlineError, HostError
from qmpfilter.qmp.monitor import Monitor, nobody_listens
from tests.qmp.fake import SECONDS, FakeQemu


def ignore(_: Mapping[str, Any]) -> None: ...


def test_a_session(tmp_path: Path) -> None:
    events: list[str] = []

    async def run(qemu: FakeQemu) -> None:
        monitor = await Monitor.connect(str(qemu.path), lambda event: events.append(event["event"]))
        assert monitor.version == "10.0.2"
        qemu.happen("STOP")
        qemu.happen("SHUTDOWN")
        qemu.happen("RESUME")
        assert (await monitor.execute("query-status"))["status"] == "running"
        await monitor.close()
        assert monitor.lost.is_set()
        await monitor.close()
        with pytest.raises(HostError, match="query-status: the QMP connection is lost"):
            await monitor.execute("query-status")

    with FakeQemu(tmp_path / "qmp") as qemu:
        asyncio.run(run(qemu))
    assert events == ["STOP", "RESUME"]


def test_a_refused_command(tmp_path: Path) -> None:
    async def run(qemu: FakeQemu) -> None:
        monitor = await Monitor.connect(str(qemu.path), ignore)
        qemu.refused["migrate"] = "no, not now"
        with pytest.raises(HostError, match=f"^{qemu.path}: migrate: no, not now$"):
            await monitor.execute("migrate", {"uri": "fd:1"})
        await monitor.close()

    with FakeQemu(tmp_path / "qmp") as qemu:
        asyncio.run(run(qemu))


def test_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run(qemu: FakeQemu) -> None:
        monitor = await Monitor.connect(str(qemu.path), ignore)
        qemu.silent.add("query-migrate")
        with pytest.raises(DeadlineError, match=r"no answer to query-migrate within 0\.2 s"):
            await monitor.execute("query-migrate", seconds=0.2)
        assert await monitor.execute("query-status")
        await monitor.close()

    with FakeQemu(tmp_path / "qmp") as qemu:
        asyncio.run(run(qemu))


@pytest.mark.parametrize("waiting", [False, True])
def test_the_connection_dies(waiting: bool, tmp_path: Path) -> None:
    """While a command waits, and while nobody does: events that came before are not lost."""
    events: list[str] = []

    async def run(qemu: FakeQemu) -> None:
        monitor = await Monitor.connect(str(qemu.path), lambda event: events.append(event["event"]))
        qemu.silent.add("query-migrate")
        qemu.happen("STOP")
        threading.Timer(0.1, qemu.cut).start()
        if waiting:
            with pytest.raises(HostError, match="query-migrate: the QMP connection is lost"):
                await monitor.execute("query-migrate")
        async with asyncio.timeout(SECONDS):
            await monitor.lost.wait()
        await monitor.close()

    with FakeQemu(tmp_path / "qmp") as qemu:
        asyncio.run(run(qemu))
    assert events == ["STOP"]


def test_nobody(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot connect to the QMP socket .*: No such file") as error:
        asyncio.run(Monitor.connect(str(tmp_path / "qmp"), ignore))
    assert nobody_listens(error.value)


def test_a_qemu_that_has_just_started(tmp_path: Path) -> None:
    async def run() -> None:
        await (await Monitor.connect(str(tmp_path / "qmp"), ignore)).close()

    started: list[FakeQemu] = []
    timer = threading.Timer(0.1, lambda: started.append(FakeQemu(tmp_path / "qmp").__enter__()))
    timer.start()
    asyncio.run(run())
    # It may be connected to before the timer's thread has noted it.
    timer.join(SECONDS)
    started[0].__exit__()


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (b"", "no QMP greeting within 0.3 s; a QMP socket serves one client at a time"),
        (b"SSH-2.0-OpenSSH\n", "is no QMP socket of a QEMU"),
        (b"{}\n", "is no QMP socket of a QEMU"),
        (None, "is no QMP socket of a QEMU"),
    ],
)
def test_something_else_listens(greeting: bytes | None, said: str, tmp_path: Path) -> None:
    def answer() -> None:
        peer, _ = listener.accept()
        with peer:
            if greeting is not None:
                peer.sendall(greeting)
                peer.settimeout(SECONDS)
                peer.recv(1)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(HostError, match=said) as error:
            asyncio.run(Monitor.connect(str(tmp_path / "qmp"), ignore, seconds=0.3))
        assert "\n" not in str(error.value)
        thread.join(SECONDS)
