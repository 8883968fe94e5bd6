# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon logs, in each form."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpfilter.daemon import logs
from qmpfilter.daemon.logs import Form, JournalHandler, configure
from tests.helpers.daemon import DaemonProcess
from tests.helpers.migration import PART, STREAM, Ends, asked, everything

SESSION = {"session": "20260101T000000-01234567"}


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The root's handlers are as before when the test is over."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    # Those of the test runner stay out of it.
    root.handlers[:] = []
    yield logging.getLogger("qmpfilter.daemon.test")
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def test_text(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure(Form.AUTO, {})
    logger.warning("one %s", "thing", extra=SESSION)
    assert capsys.readouterr().err == "WARNING: one thing\n"


def test_json(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure(Form.JSON, {})
    logger.info("Gäste", extra=SESSION)
    logger.error("two\nlines")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("at").endswith("+00:00")
    assert first == {"level": "info", "message": "Gäste", **SESSION}
    assert (second["level"], second["message"], "session" in second) == ("error", "two\nlines", False)


def test_journal(
    logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "journal")
    handler = JournalHandler(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        logger.addHandler(handler)
        logger.warning("one", extra=SESSION)
        logger.error("two\nlines")
        fields = dict(line.split("=", 1) for line in journal.recv(4096).decode().splitlines())
        assert fields == {
            "MESSAGE": "one",
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "qmpfilter",
            "CODE_FUNC": "test_journal",
            "LOGGER": "qmpfilter.daemon.test",
            "QMPFILTER_SESSION": SESSION["session"],
        }
        assert journal.recv(4096).startswith(b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nPRIORITY=3\n")
    Path(path).unlink()
    logger.error("nobody listens")
    logger.removeHandler(handler)
    handler.close()
    assert capsys.readouterr().err == "ERROR: nobody listens\n"


def test_the_journal_is_found(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        told = os.fstat(stderr.fileno())
        for stream, found in ((f"{told.st_dev}:{told.st_ino}", True), ("1:2", False), ("", False)):
            configure(Form.AUTO, {"JOURNAL_STREAM": stream})
            assert isinstance(logging.getLogger().handlers[0], JournalHandler) is found
    assert logs.JOURNAL == "/run/systemd/journal/socket"


def test_one_line_for_every_change(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, 'log = "json"\n') as daemon, Ends(tmp_path / "incoming") as ends:
        session = daemon.ask("relay", **asked(ends))["session"]
        listen = daemon.ask("show", session=session)["running"]["listen"]
        ends.dial(listen)
        ends.send(STREAM[:PART])
        ends.accept()
        ends.arrive(PART // 2)
        daemon.until(lambda: "streaming" in daemon.log(), "the change")
        daemon.ask("stop", session=session)
        everything(ends.source)
        ends.source.close()
        daemon.report(session)
        lines = [json.loads(line) for line in daemon.log().splitlines()]
    said = [line["message"] for line in lines if line.get("session") == session]
    assert said == [
        f"session {session}: {what}" for what in ("waiting", "streaming", "stopped: the operator stopped it")
    ]
