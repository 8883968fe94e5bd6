# SPDX-License-Identifier: GPL-2.0-or-later
"""A worker in this process: what its audit log and its journal hold when the end comes as it commits."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.audit.log import AuditLog
from qmpfilter.errors import HostError
from qmpfilter.filter.gate import Memory
from qmpfilter.filter.policy import Mode, Policy
from qmpfilter.relay import worker as module
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.order import Order
from qmpfilter.relay.session import SHUT_FAILED, STOPPED
from qmpfilter.relay.worker import DaemonLine, Worker
from qmpfilter.saveimage.outfile import OutputFile
from tests.helpers.fixtures import fixtures
from tests.helpers.migration import SHUT_OK, STREAM, everything, sending

SECONDS = 10.0
POSTCOPY = next(fixture for fixture in fixtures() if fixture.name == "new-postcopy").file("stream")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A worker takes signals for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Rig:
    """A worker, its order, and both ends of its migration; the destination takes what is whole."""

    def __init__(self, directory: Path, memory: Memory | None = None, **order: Any) -> None:
        self._directory = directory
        self.order = Order(
            session="one",
            listen="here",
            destination=f"unix:{directory / 'incoming'}",
            waits=Waits(linger=1),
            report=directory / "report",
            kill_switch=directory / "off",
            audit=directory / "audit",
            **{"journal": directory / "journal", "policy": Policy(), **order},
        )
        self._line, self._theirs = socket.socketpair()
        self.worker = Worker(self.order, DaemonLine(self._theirs), memory)
        self.arrived = 0
        self.heard = b""

    def run(self, stream: bytes) -> dict[str, Any]:
        """The migration to its end, and the report."""
        source, theirs = socket.socketpair()
        with self._line, self._theirs, source, socket.socket(socket.AF_UNIX) as listener:
            for end in (source, listener):
                end.settimeout(SECONDS)
            listener.bind(str(self._directory / "incoming"))
            listener.listen()
            arrive = threading.Thread(target=self._arrive, args=(listener, len(stream)))
            hear = threading.Thread(target=self._hear, args=(source,))
            threads = (sending(source, stream), arrive, hear)
            arrive.start()
            hear.start()
            self.worker.run([theirs])
            for thread in threads:
                thread.join(SECONDS)
        report: dict[str, Any] = json.loads(self.order.report.read_text())
        return report

    def _arrive(self, listener: socket.socket, whole: int) -> None:
        destination = listener.accept()[0]
        destination.settimeout(SECONDS)
        with destination:
            while self.arrived < whole and (part := destination.recv(1 << 20)):
                self.arrived += len(part)
            if self.arrived == whole:
                destination.sendall(SHUT_OK)

    def _hear(self, source: socket.socket) -> None:
        self.heard = everything(source)
        source.shutdown(socket.SHUT_RDWR)

    def records(self) -> list[dict[str, Any]]:
        entries = list(AuditLog(self._directory / "audit").entries())
        return [entry.record for entry in entries if entry.record is not None and entry.fault is None]

    def journal(self) -> list[str]:
        return [json.loads(line)["phase"] for line in self.order.journal.read_text().splitlines()]


def test_stopped_while_the_log_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)

    class Stopping(AuditLog):
        def append(self, body: Mapping[str, Any], seconds: float) -> int:
            rig.worker.stop()
            return super().append(body, seconds)

    monkeypatch.setattr(module, "AuditLog", Stopping)
    report = rig.run(STREAM)
    assert (report["outcome"], report["reason"], rig.heard) == ("stopped", STOPPED, SHUT_FAILED)
    released, kept = rig.records()
    assert (released["decision"], kept["decision"], kept["reason"]) == ("released", "kept", STOPPED)
    assert (kept["session"], kept["corrects"]) == (released["session"], released["number"])
    assert "corrects" not in released
    assert "committed" not in rig.journal()


def test_stopped_before_the_log_is_written(tmp_path: Path) -> None:
    def memory(_: Sequence[int]) -> Mapping[int, bytes]:
        rig.worker.stop()
        raise HostError("no answer")

    rig = Rig(tmp_path, memory)
    assert rig.run(POSTCOPY)["outcome"] == "stopped"
    assert [(record["decision"], record["reason"]) for record in rig.records()] == [("kept", STOPPED)]
    assert "committed" not in rig.journal()


FULL = Path("/dev/full")


def test_what_cannot_be_noted_stays(tmp_path: Path) -> None:
    rig = Rig(tmp_path, journal=FULL)
    report = rig.run(STREAM)
    assert (report["outcome"], rig.heard) == ("failed", SHUT_FAILED)
    assert report["reason"] == "the journal of this migration cannot be written: No space left on device"
    assert rig.arrived < len(STREAM)
    assert [record["decision"] for record in rig.records()] == ["released", "kept"]


@pytest.mark.parametrize("off", [True, False], ids=["switched off", "observes"])
def test_what_has_to_pass_does_so_and_is_in_doubt_until_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: bool
) -> None:
    rig = Rig(tmp_path, journal=FULL, policy=Policy(mode=Mode.ANNEX if off else Mode.OBSERVE))
    if off:
        rig.order.kill_switch.touch()
    left: list[str] = []

    class Watching(OutputFile):
        def commit(self) -> None:
            super().commit()
            left.append(json.loads(rig.order.report.read_text())["outcome"])

    monkeypatch.setattr(module, "OutputFile", Watching)
    rig.run(STREAM)
    assert rig.arrived == len(STREAM)
    assert (left[0], len(left)) == ("in doubt", 2)
    assert left[1] != "failed"


def test_a_line_of_which_only_a_part_fits_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    write = os.write

    def short(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:-9] if b'"committed"' in data[:30] else data)

    monkeypatch.setattr(os, "write", short)
    assert rig.run(STREAM)["outcome"] == "failed"
    assert rig.journal()[-1] == "ended"
    assert "committed" not in rig.journal()


def test_who_was_let_go_has_one_record(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert rig.run(STREAM)["outcome"] == "completed"
    assert [record["decision"] for record in rig.records()] == ["released"]


def test_a_log_that_is_locked_for_a_while_has_the_end_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(AuditLog):
        def append(self, body: Mapping[str, Any], seconds: float) -> int:
            if body["decision"] == "released":
                raise HostError("somebody writes")
            return super().append(body, seconds)

    monkeypatch.setattr(module, "AuditLog", Busy)
    rig = Rig(tmp_path, audit_required=True)
    assert rig.run(STREAM)["outcome"] == "vetoed"
    assert [record["decision"] for record in rig.records()] == ["kept"]
