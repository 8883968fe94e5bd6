# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon that speaks with QEMUs: it takes migrations over, or follows those that others began."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from qmpfilter.errors import HostError
from tests.helpers.daemon import DaemonProcess
from tests.helpers.migration import SHUT_OK, STREAM, Ends, asked
from tests.qmp.fake import FakeQemu


class Rig(NamedTuple):
    daemon: DaemonProcess
    source: FakeQemu
    destination: FakeQemu

    def take_over(self) -> str:
        """A session in which the source is told to migrate to the destination."""
        told = self.daemon.ask("relay", listen=f"qmp:{self.source.path}", connect=f"qmp:{self.destination.path}")
        assert told["listen"] == f"qmp:{self.source.path}"
        return str(told["session"])


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as process:
        yield process


@pytest.fixture
def rig(started: DaemonProcess, tmp_path: Path) -> Iterator[Rig]:
    with FakeQemu(tmp_path / "source") as source, FakeQemu(tmp_path / "destination", incoming=True) as destination:
        yield Rig(started, source, destination)


def test_a_migration_is_taken_over(rig: Rig) -> None:
    report = rig.daemon.report(rig.take_over())
    assert (report["outcome"], report["guest_at"]) == ("completed", "destination")
    assert report["source"]["migration"]["milliseconds"]["downtime"] == 7
    assert (report["source"]["name"], report["asked_by"]) == ("a guest", f"user {os.getuid()}, process {os.getpid()}")
    assert len(rig.destination.arrived) == len(STREAM)
    assert report["vmcb12_pages_read"] == 1


def test_what_cannot_be_begun_is_told(rig: Rig) -> None:
    rig.source.parameters["tls-creds"] = "tls0"
    report = rig.daemon.report(rig.take_over())
    assert report["outcome"] == "vetoed"
    assert "tls-creds" in report["reason"]
    assert rig.source.names() == []


def test_one_that_was_taken_over_is_stopped(rig: Rig) -> None:
    rig.source.held = threading.Event()
    session = rig.take_over()
    rig.daemon.until(lambda: "migrate" in rig.source.names(), "the migration to begin")
    rig.daemon.ask("stop", session=session)
    rig.source.held.set()
    report = rig.daemon.report(session)
    assert (report["outcome"], report["reason"]) == ("stopped", "the operator stopped it")
    assert rig.source.status == "running"


@pytest.mark.parametrize("answers", [True, False])
def test_a_source_is_followed(rig: Rig, tmp_path: Path, answers: bool) -> None:
    rig.source.status = "finish-migrate"
    rig.source.migration = {"status": "completed", "total-time": 120, "downtime": 7}
    if not answers:
        rig.source.die()
    with Ends(tmp_path / "incoming") as ends:
        told = rig.daemon.ask("relay", **asked(ends, qmp=str(rig.source.path)))
        ends.dial(told["listen"])
        ends.send(STREAM)
        ends.accept()
        ends.arrive(len(STREAM))
        assert ends.finish() == SHUT_OK
        report = rig.daemon.report(told["session"])
    assert report["outcome"] == "completed"
    assert report["vmcb12_pages_read"] == int(answers)
    assert bool(report["warnings"]) is not answers
    assert report["source"]["migration"].get("status") == ("completed" if answers else "")
    assert bool(report["source"]["problems"]) is not answers


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"qmp": "relative"}, "relative: an absolute path was expected"),
        ({"listen": "qmp:/a", "qmp": "/b"}, "by listen already"),
        ({"listen": "qmp:relative"}, "an absolute path was expected"),
        ({"connect": "qmp:/a"}, "not an address"),
        ({"read_vmcb12": "auto"}, "true or false was expected"),
    ],
)
def test_requests_that_are_wrong(started: DaemonProcess, what: dict[str, object], said: str) -> None:
    with pytest.raises(HostError, match=said):
        started.ask("relay", **{"listen": "tcp:127.0.0.1:0", "connect": "unix:/nowhere"} | what)
