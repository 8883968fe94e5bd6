# SPDX-License-Identifier: GPL-2.0-or-later
"""``virsh migrate`` between two real libvirts, through the relay at another address of the same port."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.hosts import MID, OLD
from tests.lab.inhost.waiting import wait_until
from tests.lab.session import SECONDS, SessionDaemon, VirshError, guest_of, shared_directory

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SessionDaemon, SessionDaemon]]:
    """An old libvirt and a newer one."""
    shared = shared_directory(tmp_path_factory)
    with SessionDaemon(OLD, shared, "old") as old, SessionDaemon(MID, shared, "mid") as mid:
        yield old, mid


@pytest.fixture
def guest(pair: tuple[SessionDaemon, SessionDaemon]) -> Iterator[None]:
    """A guest that runs at the old one."""
    with guest_of(*pair):
        yield


def migrate(source: SessionDaemon, target: SessionDaemon, report: Path, *flags: str, astray: bool = False) -> int:
    """Migrate the guest, and the exit status of the relay.

    Raises VirshError.

    :param astray: the relay connects to where nobody listens
    """
    port = free_port()
    onward = free_port() if astray else port
    argv = ["relay", f"tcp:127.0.0.2:{port}", f"tcp:127.0.0.1:{onward}", "--report", str(report)]
    with subprocess.Popen([sys.executable, "-m", "qmpfilter", *argv], stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: listens(port), SECONDS, "the relay to listen", 0.05)
            uri = ["--migrateuri", f"tcp://127.0.0.2:{port}", "--listen-address", "127.0.0.1"]
            try:
                source.virsh("migrate", "--live", *flags, "guest", target.uri, *uri)
            finally:
                status = process.wait(SECONDS)
        finally:
            process.kill()
    return status


def free_port() -> int:
    """A port that is free on both addresses now."""
    with socket.create_server(("127.0.0.2", 0)) as here:
        return int(here.getsockname()[1])


def listens(port: int) -> bool:
    """Somebody listens on that port of 127.0.0.2 (proc(5): state 0A of /proc/net/tcp)."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(row.split()[1] == f"0200007F:{port:04X}" and row.split()[3] == "0A" for row in rows)


@pytest.mark.parametrize(
    ("flags", "channels"),
    [
        ((), ["main"]),
        (("--p2p",), ["main"]),
        (("--parallel", "--parallel-connections", "3"), ["main", *["multifd"] * 3]),
        (("--p2p", "--persistent", "--undefinesource", "--auto-converge"), ["main"]),
    ],
    ids=["plain", "p2p", "parallel", "persistent"],
)
@pytest.mark.usefixtures("guest")
def test_there_and_back(
    pair: tuple[SessionDaemon, SessionDaemon], tmp_path: Path, flags: tuple[str, ...], channels: list[str]
) -> None:
    old, mid = pair
    for source, target in ((old, mid), (mid, old)):
        assert migrate(source, target, tmp_path / "report", *flags) == 0
        assert (source.state("guest"), target.state("guest")) == ("absent", "running")
        report = json.loads((tmp_path / "report").read_text())
        assert (report["outcome"], report["channels"], len(report["vcpus"])) == ("completed", channels, 2)


@pytest.mark.usefixtures("guest")
def test_a_guest_stays_when_the_relay_stops(pair: tuple[SessionDaemon, SessionDaemon], tmp_path: Path) -> None:
    old, mid = pair
    with pytest.raises(VirshError):
        migrate(old, mid, tmp_path / "report", astray=True)
    assert (old.state("guest"), mid.state("guest")) == ("running", "absent")
    report = json.loads((tmp_path / "report").read_text())
    assert (report["outcome"], "cannot connect" in report["reason"]) == ("failed", True)
