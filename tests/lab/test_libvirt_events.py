# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon that hears what a real libvirt tells, while a guest is migrated through it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hosts import MID, OLD
from tests.lab.inhost.waiting import wait_until
from tests.lab.session import (
    QMP,
    SECONDS,
    SessionDaemon,
    guest_of,
    provide_package,
    shared_directory,
)

pytestmark = pytest.mark.lab

HOME = "/shared/old"
SOCKET = ("--socket", f"{HOME}/runtime/control.sock")
LISTEN = "tcp:127.0.0.2:49310"


# No names of hosts: those would be tried at the same time, and both listen at one port.
@pytest.fixture(params=[(OLD, MID), (MID, OLD)], ids=["by the old one", "by the newer one"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SessionDaemon]]:
    """A libvirt whose daemon is tried, and another."""
    shared = shared_directory(tmp_path_factory)
    provide_package(shared)
    first, second = request.param
    with SessionDaemon(first, shared, "old") as old, SessionDaemon(second, shared, "other") as other:
        yield [old, other]


def test_events_are_logged_and_stand_in_the_report(pair: list[SessionDaemon]) -> None:
    old, other = pair
    config = f'runtime_directory = "{HOME}/runtime"\nstate_directory = "{HOME}/state"\nlog = "text"\n'
    (old.directory / "q.toml").write_text(f'{config}[libvirt]\nuri = "{old.uri}"\n')
    with guest_of(old, other, kind="full"), old.running_qmpfilter("run", "--config", f"{HOME}/q.toml") as daemon:
        said: list[str] = []
        assert daemon.process.stderr is not None
        read_until(daemon.process.stderr, said, lambda line: line.endswith("are heard\n"))
        onward = "tcp:127.0.0.1:49310"
        started = old.qmpfilter("start", LISTEN, onward, "--qmp", QMP, "--json", *SOCKET)
        assert started.returncode == 0, started.stderr
        session = json.loads(started.stdout)["session"]
        uri = ("--migrateuri", "tcp://127.0.0.2:49310", "--listen-address", "127.0.0.1")
        old.virsh("migrate", "--live", "guest", other.uri, *uri)
        read_until(daemon.process.stderr, said, lambda line: "job completed in" in line)
        report = old.directory / "state/sessions" / f"{session}.json"
        wait_until(lambda: "libvirt" in report_in(report), SECONDS, "what libvirt told", 0.05)
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(SECONDS) == 0
    told = report_in(report)["libvirt"]
    events = [event["what"] for event in told["events"]]
    for what in (
        "QEMU's migration: setup",
        "suspended (migrated)",
        "QEMU's migration: completed",
        "stopped (migrated)",
    ):
        assert what in events
        assert any(line.endswith(f": {what}\n") for line in said)
    assert told["job"]["time_elapsed"] > 0
    assert report_in(report)["outcome"] == "completed"


def read_until(lines: Any, said: list[str], wanted: Callable[[str], bool]) -> None:
    for line in lines:
        said.append(line)
        if wanted(line):
            return
    raise AssertionError("".join(said))


def report_in(path: Path) -> dict[str, Any]:
    """The report, empty as long as there is none."""
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return report
