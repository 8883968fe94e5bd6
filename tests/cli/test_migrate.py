# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter migrate` between QEMUs that only pretend: what it prints, its exit status, its report."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from qmpfilter.cli.main import EXIT_HOST, main
from qmpfilter.cli.migration_progress import as_line, as_size
from qmpfilter.cli.policy_options import EXIT_IN_DOUBT, EXIT_STAYED, EXIT_VETOED
from qmpfilter.errors import HostError
from qmpfilter.qmp.info import MigrationInfo
from qmpfilter.saveimage.outfile import OutputFile
from tests.qmp.fake import SECONDS, FakeQemu


class Pair(NamedTuple):
    """The two QEMUs, and where they are."""

    directory: Path
    source: FakeQemu
    destination: FakeQemu

    def argv(self, *options: str) -> list[str]:
        report = str(self.directory / "report")
        target = f"qmp:{self.destination.path}"
        return ["migrate", "--qmp", str(self.source.path), target, "--report", report, *options]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with FakeQemu(tmp_path / "source") as source, FakeQemu(tmp_path / "destination", incoming=True) as destination:
        yield Pair(tmp_path, source, destination)


def test_completed(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(pair.argv()) == 0
    out, errors = capsys.readouterr()
    assert out.startswith("completed: the destination runs the guest\n")
    assert (
        "  source, QEMU 10.0.2: migration completed in 120 ms, guest stopped for 7 ms; guest postmigrate\n"
        "  destination, QEMU 10.0.2: migration completed; guest running\n"
    ) in out
    assert errors.splitlines()[-1].startswith("completed")
    report = json.loads((pair.directory / "report").read_text())
    assert (report["outcome"], report["source"]["guest"], report["destination"]["guest"]) == (
        "completed", "postmigrate", "running",
    )  # fmt: skip


def test_a_veto_is_told_with_what_the_guest_does(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"schema": "qmpfilter.host/1", "kvm": {"parameters": {"kvm_amd": {"nested": "0"}}}}
    (pair.directory / "host.json").write_text(json.dumps(facts))
    assert main(pair.argv("--host", str(pair.directory / "host.json"))) == EXIT_VETOED
    out, errors = capsys.readouterr()
    assert out.startswith("vetoed: stopped before the destination could start the guest")
    last = errors.splitlines()[-1]
    assert last.startswith("qmpfilter: vCPU 0:")
    assert last.endswith("; at the source the guest runs again")


def test_two_guests(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    pair.source.revived = True
    assert main(pair.argv()) == EXIT_IN_DOUBT
    assert "both QEMUs say that they run the guest: stop one of them now" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_in_the_end_changes_nothing(
    pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: OutputFile) -> None:
        raise HostError("no space left")

    monkeypatch.setattr(OutputFile, "commit", full)
    assert main(pair.argv()) == 0
    out, errors = capsys.readouterr()
    assert out.startswith("completed")
    assert "the report could not be written" in errors


def test_a_report_that_cannot_be_written_from_the_start_begins_nothing(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*pair.argv(), "--report", "/nowhere/report"]) == EXIT_HOST
    assert "/nowhere/report: No such file" in capsys.readouterr().err
    assert pair.source.names() == []


def test_settings_that_forbid_it(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    pair.source.capabilities["multifd"] = True
    assert main(pair.argv()) == EXIT_HOST
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.count("\n") == 1
    assert "multifd uses several connections" in errors
    assert not (pair.directory / "report").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cancels_it(number: signal.Signals, pair: Pair) -> None:
    pair.source.held = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-m", "qmpfilter", *pair.argv()],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        late = time.monotonic() + SECONDS
        while "migrate-incoming" not in pair.destination.names():
            assert time.monotonic() < late
            time.sleep(0.02)
        process.send_signal(number)
        while "migrate_cancel" not in pair.source.names():
            assert time.monotonic() < late
            time.sleep(0.02)
        pair.source.held.set()
        out, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_STAYED
    assert "reason: the operator stopped it" in out
    assert "; guest running\n" in out
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["unix:/a"], "DOMAIN and DESTURI are needed, or --qmp SOCKET and TARGET"),
        (["--qmp", "/nowhere/qmp", "guest", "unix:/a"], "--qmp SOCKET takes TARGET, and nothing else"),
        (["--qmp", "/nowhere/qmp", "unix:/a", "--p2p"], "--p2p is for a domain of libvirt"),
        (["guest", "qemu:///session", "--tls"], "--tls has QEMU encrypt its stream, which then cannot be filtered"),
        (["guest", "qemu:///session", "--tunnelled"], "past every filter"),
        (["guest", "qemu:///session", "--timeout-postcopy"], "--timeout SECONDS is missing"),
        (["--qmp", "/nowhere/qmp", "unix:/a"], "cannot connect to the QMP socket /nowhere/qmp: No such file"),
        (["--qmp", "/nowhere/qmp", "nowhere"], "'nowhere' is not an address that can be relayed"),
        (["--qmp", "/nowhere/qmp", "original"], "'original' is not an address that can be relayed"),
        (["--qmp", "/nowhere/qmp", "unix:/a", "--deadline", "idle=never"], "NAME=SECONDS"),
        (["--qmp", "/nowhere/qmp", "unix:/a", "--mode", "native"], "announce"),
        (
            ["--qmp", "/nowhere/qmp", "pair:unix:/a", "--mode", "native"],
            "cannot connect to the QMP socket /nowhere/qmp",
        ),
        (["pair:unix:/a", "qemu:///session", "--mode", "native"], "announce"),
    ],
)
def test_wrong_calls_are_told_in_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", *argv]) == EXIT_HOST
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("info", "line"),
    [
        (MigrationInfo(status="setup"), "setup"),
        (
            MigrationInfo(status="active", total=1 << 31, remaining=1 << 30, rate=100 << 20),
            "active: 1.0 GiB of 2.0 GiB left, 100.0 MiB/s",
        ),
        (
            MigrationInfo(status="active", total=1 << 20, remaining=512, rate=1, dirty_rate=8192),
            "active: 512 B of 1.0 MiB left, 1 B/s, the guest changes 8.0 KiB/s",
        ),
        (MigrationInfo(status="completed", total=1 << 20), "completed"),
    ],
)
def test_progress(info: MigrationInfo, line: str) -> None:
    assert as_line(info) == line


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1 << 50, "1024.0 TiB")])
def test_sizes(count: int, text: str) -> None:
    assert as_size(count) == text
