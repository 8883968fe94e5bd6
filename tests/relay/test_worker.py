# SPDX-License-Identifier: GPL-2.0-or-later
"""A worker process between sockets at hand: what it says, and that it needs nobody who listens."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.filter.policy import Policy
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.order import Order
from qmpfilter.relay.session import SHUT_FAILED
from tests.helpers.migration import PART, SHUT_OK, STREAM, Ends, everything

SECONDS = 60.0


class Rig:
    """A worker with its order, one connected source, and a destination that waits."""

    def __init__(self, directory: Path, waits: Waits | None = None) -> None:
        self.ends = Ends(directory / "incoming")
        self.order = Order(
            session="one",
            listen="here",
            destination=self.ends.connect,
            policy=Policy(),
            waits=waits or Waits(),
            report=directory / "report",
            journal=directory / "journal",
            kill_switch=directory / "off",
        )
        self.line, theirs = socket.socketpair()
        self.line.settimeout(SECONDS)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qmpfilter.qmp.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip

    def give(self) -> None:
        """The order, with the source's connection."""
        self.ends.source, theirs = socket.socketpair()
        self.ends.source.settimeout(SECONDS)
        with theirs:
            socket.send_fds(self.line, [self.order.to_json().encode() + b"\n"], [theirs.fileno()])

    def begin(self, data: bytes) -> None:
        self.give()
        self.ends.send(data)
        self.ends.accept()
        self.ends.arrive(len(data) if data == STREAM else len(data) // 2)

    def complete(self) -> None:
        self.ends.send(STREAM[PART:])
        self.ends.arrive(len(STREAM))
        assert self.ends.finish() == SHUT_OK

    def events(self) -> list[dict[str, Any]]:
        """All that it said, when it has ended."""
        return [json.loads(line) for line in everything(self.line).splitlines()]

    def end(self) -> tuple[int, str]:
        """Exit status and stderr."""
        _, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, errors.decode()

    def report(self) -> dict[str, Any]:
        assert self.end() == (0, "")
        told: dict[str, Any] = json.loads(self.order.report.read_text())
        return told

    def journal(self) -> list[str]:
        return [json.loads(line)["phase"] for line in self.order.journal.read_text().splitlines()]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    yield from rigged(Rig(tmp_path))


def rigged(made: Rig) -> Iterator[Rig]:
    with made.ends:
        yield made
    made.process.kill()
    made.end()
    made.line.close()
    with suppress(AttributeError):
        made.ends.source.close()


def test_what_it_says(rig: Rig) -> None:
    rig.begin(STREAM)
    # Before the byte that commits had passed.
    assert rig.journal()[-1] == "committed"
    assert rig.ends.finish() == SHUT_OK
    rig.ends.source.close()
    report = rig.report()
    events = rig.events()
    assert [event["phase"] for event in events if event["event"] == "phase"] == rig.journal()
    assert [phase for phase in rig.journal() if phase != "streaming"] == ["waiting", "committed", "ended"]
    moved = [event for event in events if event["event"] == "moved"]
    assert all(event["forward"] <= len(STREAM) and event["channels"] == ["main"] for event in moved)
    assert events[-1] == {"event": "report", "report": report}
    assert (report["outcome"], report["session"], report["connect"]) == ("completed", "one", rig.order.destination)
    assert stat.S_IMODE(rig.order.report.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("more", "reason"),
    [(b"", "the operator stopped it"), (b', "reason": "its QEMU has ended"', "its QEMU has ended")],
)
def test_stopped(rig: Rig, more: bytes, reason: str) -> None:
    rig.begin(STREAM[:PART])
    assert "committed" not in rig.journal()
    rig.line.sendall(b'{"op": "lunch"}\nnonsense\n{"op": ')
    rig.line.sendall(b'"stop"%b}\n' % more)
    assert everything(rig.ends.source) == SHUT_FAILED
    rig.ends.source.close()
    report = rig.report()
    assert (report["outcome"], report["reason"]) == ("stopped", reason)


def test_stopped_by_a_signal(rig: Rig) -> None:
    rig.begin(STREAM[:PART])
    os.kill(rig.process.pid, signal.SIGTERM)
    assert everything(rig.ends.source) == SHUT_FAILED
    rig.ends.source.close()
    report = rig.report()
    assert (report["outcome"], report["reason"]) == ("stopped", "the relay was interrupted")


def test_it_goes_on_when_the_line_breaks(rig: Rig) -> None:
    rig.begin(STREAM[:PART])
    rig.line.close()
    os.kill(rig.process.pid, signal.SIGHUP)
    rig.complete()
    rig.ends.source.close()
    assert rig.report()["outcome"] == "completed"


def test_it_waits_for_nobody_who_does_not_read(rig: Rig) -> None:
    rig.line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    rig.begin(STREAM[:PART])
    rig.complete()
    rig.ends.source.close()
    assert rig.report()["outcome"] == "completed"


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    made = Rig(tmp_path)
    (tmp_path / "report").mkdir()
    for rig in rigged(made):
        rig.begin(STREAM)
        rig.ends.finish()
        rig.ends.source.close()
        status, errors = rig.end()
        assert status == 0
        assert "the report of one could not be written" in errors
        assert rig.journal()[-1] == "ended"
        assert rig.events()[-1]["report"]["outcome"] == "completed"


def test_a_source_that_never_comes(tmp_path: Path) -> None:
    for rig in rigged(Rig(tmp_path, Waits(source=0.1))):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "here"))
            listener.listen()
            socket.send_fds(rig.line, [rig.order.to_json().encode() + b"\n"], [listener.fileno()])
        report = rig.report()
        assert (report["outcome"], rig.journal()) == ("failed", ["waiting", "ended"])
        assert "waiting for the source" in report["reason"]
        with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as late:
            late.connect(str(tmp_path / "here"))


@pytest.mark.parametrize(("text", "said"), [(b"{}\n", "no order"), (b"", "ended before it held an order")])
def test_no_order(rig: Rig, text: bytes, said: str) -> None:
    rig.line.sendall(text)
    rig.line.shutdown(socket.SHUT_WR)
    assert said in rig.events()[-1]["reason"]
    assert rig.end() == (1, "")
