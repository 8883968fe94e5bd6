# SPDX-License-Identifier: GPL-2.0-or-later
"""Real migrations through the daemon: whoever of it is killed, one QEMU runs the guest, and the report says so."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.daemon import DaemonProcess
from tests.lab.inhost.machine import Machine
from tests.lab.inhost.waiting import wait_until
from tests.lab.live import Fuse, Point, freeze, machine, qemu_in, runs, thaw

pytestmark = pytest.mark.lab

SECONDS = 60.0
SETTLING = 0.5  # for a worker to pass on what it has
AT_ONCE = 20


class Rig(NamedTuple):
    """A source that runs its guest, a destination that waits, and a session between them."""

    daemon: DaemonProcess
    source: Machine
    destination: Machine
    session: str
    address: Path

    def worker(self) -> int:
        pid: int = self.daemon.ask("show", session=self.session)["running"]["pid"]
        return pid

    def migrated(self) -> None:
        """The destination runs the guest, and the source does not."""
        wait_until(lambda: runs(self.destination), SECONDS, "the destination to run", 0.05)
        assert not runs(self.source)
        self.destination.wait_for_rounds({0: self.source.progress().rounds[0][-1]})

    def stayed(self) -> None:
        """The source runs the guest, and the destination does not."""
        wait_until(lambda: runs(self.source), SECONDS, "the source to go on", 0.05)
        assert not runs(self.destination)
        self.source.wait_for_rounds({0: self.source.progress().rounds[0][-1]})


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with (
        qemu_in(tmp_path),
        DaemonProcess(tmp_path) as daemon,
        machine(tmp_path, "source") as source,
        machine(tmp_path, "destination", incoming=True) as destination,
    ):
        source.wait_for_rounds({0: 0})
        for end in (source, destination):
            end.configure(["return-path", "events"], {})
        destination.qmp.command("migrate-incoming", uri=f"unix:{tmp_path / 'incoming'}")
        address = tmp_path / "listen"
        told = daemon.ask("relay", listen=f"unix:{address}", connect=f"unix:{tmp_path / 'incoming'}")
        yield Rig(daemon, source, destination, told["session"], address)


@contextlib.contextmanager
def stopped_at(rig: Rig, point: Point, *, silent: bool = False) -> Iterator[Fuse]:
    """The migration has come to a point and waits there."""
    fuse = Fuse(rig.address.parent, rig.address, point, silent=silent)
    try:
        rig.source.qmp.command("migrate", uri=f"unix:{fuse.address}")
        fuse.wait_until_reached()
        time.sleep(SETTLING)
        yield fuse
    finally:
        fuse.close()


def test_a_migration_completes(rig: Rig) -> None:
    rig.source.qmp.command("migrate", uri=f"unix:{rig.address}")
    rig.migrated()
    report = rig.daemon.report(rig.session)
    assert (report["outcome"], report["return_path"], report["channels"]) == ("completed", True, ["main"])


@pytest.mark.parametrize("point", Point, ids=lambda point: point.value)
def test_the_daemon_is_killed(rig: Rig, point: Point) -> None:
    # After the commit point it is killed before the source has heard of it.
    with stopped_at(rig, point, silent=point is Point.AFTER) as fuse:
        rig.daemon.process.kill()
        rig.daemon.process.wait(SECONDS)
        fuse.release()
        rig.migrated()
    rig.daemon.start()
    assert rig.daemon.report(rig.session)["outcome"] == "completed"


@pytest.mark.parametrize("point", [one for one in Point if one is not Point.AFTER], ids=lambda point: point.value)
def test_the_worker_is_killed(rig: Rig, point: Point) -> None:
    with stopped_at(rig, point) as fuse:
        os.kill(rig.worker(), signal.SIGKILL)
        fuse.cut()
        rig.stayed()
    report = rig.daemon.report(rig.session)
    assert report["outcome"] == "failed"
    assert report["reason"].startswith("the worker was killed by SIGKILL before the commit point")


def test_the_worker_is_killed_after_the_commit_point(rig: Rig) -> None:
    with stopped_at(rig, Point.EOF) as fuse:
        # Before the destination had time to answer.
        freeze(rig.destination)
        fuse.release()
        assert fuse.emptied.wait(SECONDS)
        fuse.wait_until_read()
        time.sleep(SETTLING)
        os.kill(rig.worker(), signal.SIGKILL)
        report = rig.daemon.report(rig.session)
    assert report["outcome"] == "in doubt"
    assert report["reason"].startswith("the worker was killed by SIGKILL after the commit point")
    thaw(rig.destination)


def test_the_operator_stops_it(rig: Rig) -> None:
    with stopped_at(rig, Point.RAM) as fuse:
        rig.daemon.ask("stop", session=rig.session)
        fuse.release()
        rig.stayed()
    assert rig.daemon.report(rig.session)["reason"] == "the operator stopped it"


def test_many_at_once(tmp_path: Path) -> None:
    with contextlib.ExitStack() as running:
        running.enter_context(qemu_in(tmp_path))
        daemon = running.enter_context(DaemonProcess(tmp_path))
        pairs = []
        for number in range(AT_ONCE):
            source = running.enter_context(machine(tmp_path, f"source{number}", memory=32))
            source.wait_for_rounds({0: 0})
            source.qmp.command("stop")
            destination = running.enter_context(machine(tmp_path, f"there{number}", incoming=True, memory=32))
            for end in (source, destination):
                end.configure(["return-path", "events"], {})
            incoming, listen = (f"unix:{tmp_path / f'{kind}{number}'}" for kind in ("in", "listen"))
            destination.qmp.command("migrate-incoming", uri=incoming)
            session = daemon.ask("relay", listen=listen, connect=incoming)["session"]
            pairs.append((source, destination, listen, session))
        assert daemon.ask("status")["running"] == AT_ONCE
        for source, _, listen, _ in pairs:
            source.qmp.command("migrate", uri=listen)
        for source, destination, _, session in pairs:
            assert daemon.report(session)["outcome"] == "completed"
            destination.qmp.command("cont")
            destination.wait_for_rounds({0: source.progress().rounds[0][-1]})
            destination.kill()
        assert [one["outcome"] for one in daemon.ask("sessions")["ended"]] == ["completed"] * AT_ONCE
