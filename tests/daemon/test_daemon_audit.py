# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon's workers leave in the audit log, and what happens where they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.audit.log import AuditLog
from qmpfilter.relay.session import SHUT_FAILED
from tests.helpers.daemon import DaemonProcess
from tests.helpers.migration import PART, SHUT_OK, STREAM, Ends, asked, everything


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    with Ends(tmp_path / "incoming") as both:
        yield both


def recorded(daemon: DaemonProcess) -> list[dict[str, Any]]:
    entries = list(AuditLog(daemon.state / "audit").entries())
    assert not any(entry.fault for entry in entries)
    return [entry.record for entry in entries if entry.record is not None]


def test_one_record_for_each(tmp_path: Path, ends: Ends) -> None:
    with DaemonProcess(tmp_path) as daemon:
        kept = daemon.ask("relay", **asked(ends))
        ends.dial(kept["listen"])
        ends.send(STREAM[:PART])
        ends.accept()
        ends.arrive(PART // 2)
        daemon.ask("stop", session=kept["session"])
        assert everything(ends.source) == SHUT_FAILED
        ends.source.close()
        daemon.report(kept["session"])

        let_go = daemon.ask("relay", **asked(ends))
        ends.arrived = 0
        ends.dial(let_go["listen"])
        ends.send(STREAM)
        ends.accept()
        ends.arrive(len(STREAM))
        # The destination has all of it, so it is in the log.
        first, second = recorded(daemon)
        assert ends.finish() == SHUT_OK
        daemon.report(let_go["session"])
        assert recorded(daemon) == [first, second]
    assert (first["session"], first["decision"]) == (kept["session"], "kept")
    assert first["reason"] == "the operator stopped it"
    assert (second["session"], second["decision"], second["reason"]) == (let_go["session"], "released", "")
    assert (second["mode"], second["edited_vcpus"]) == ("annex", 1)


@pytest.mark.parametrize("required", [True, pytest.param(False, marks=pytest.mark.lab)])
def test_a_log_that_cannot_be_written(tmp_path: Path, ends: Ends, required: bool) -> None:
    with DaemonProcess(tmp_path, f"[audit]\nrequired = {str(required).lower()}\n") as daemon:
        (daemon.state / "audit").touch()
        told = daemon.ask("relay", **asked(ends))
        ends.dial(told["listen"])
        ends.send(STREAM)
        ends.accept()
        if required:
            assert len(everything(ends.destination)) < len(STREAM)
            assert everything(ends.source) == SHUT_FAILED
            ends.source.close()
        else:
            ends.arrive(len(STREAM))
            assert ends.finish() == SHUT_OK
        report = daemon.report(told["session"])
    assert report["outcome"] == ("vetoed" if required else "completed")
    said = report["reason"] if required else report["warnings"][0]
    assert "audit log" in said
