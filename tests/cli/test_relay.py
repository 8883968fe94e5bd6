# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter relay` as a process of its own: exit status, what it prints, and its report."""

from __future__ import annotations

import json
import re
import select
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qmpfilter.cli.main import EXIT_HOST, main
from qmpfilter.cli.policy_options import EXIT_STAYED, EXIT_VETOED
from qmpfilter.relay.session import SHUT_FAILED
from tests.helpers.migration import SHUT_OK, STREAM, everything, exactly, sending
from tests.lab.inhost.waiting import listens, wait_until

SECONDS = 60.0


@contextmanager
def relaying(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], socket.socket, socket.socket]]:
    """The process, a source that is connected, and the destination that waits."""
    destination = socket.socket(socket.AF_UNIX)
    source = socket.socket(socket.AF_UNIX)
    with destination, source:
        for end in (destination, source):
            end.settimeout(SECONDS)
        destination.bind(str(directory / "incoming"))
        destination.listen()
        argv = ["relay", f"unix:{directory / 'relay'}", f"unix:{directory / 'incoming'}", *options]
        with subprocess.Popen(
            [sys.executable, "-m", "qmpfilter", *argv, "--report", str(directory / "report")],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                wait_until(lambda: listens(directory / "relay"), SECONDS, "the relay's socket", 0.02)
                source.connect(str(directory / "relay"))
                yield process, source, destination
            finally:
                process.kill()


def test_a_completed_migration(tmp_path: Path) -> None:
    with relaying(tmp_path) as (process, source, listener):
        sender = sending(source, STREAM)
        destination = listener.accept()[0]
        with destination:
            arrived = exactly(destination, len(STREAM))
            sender.join(SECONDS)
            source.shutdown(socket.SHUT_WR)
            assert everything(destination) == b""
            destination.sendall(SHUT_OK)
        assert everything(source) == SHUT_OK
        source.close()
        out, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, f"qmpfilter: waits at unix:{tmp_path / 'relay'}\n")
    assert len(arrived) == len(STREAM)
    assert not (tmp_path / "relay").exists()
    assert out.startswith("completed: the destination runs the guest\n")
    report = json.loads((tmp_path / "report").read_text())
    assert stat.S_IMODE((tmp_path / "report").stat().st_mode) == 0o600
    assert (report["outcome"], report["edited_vcpus"], report["bytes"]["forward"]) == ("completed", 1, len(STREAM))
    assert list(report["moments"]) == [
        "waiting", "connected", "return path", "tail", "committed", "answered", "ended"
    ]  # fmt: skip
    assert 0 < report["seconds"]["tail"] < report["seconds"]["total"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", moment) for moment in report["moments"].values())
    assert all(STREAM.startswith(b"\x04", vcpu["offset"]) for vcpu in report["vcpus"])
    assert "vmcb12_save.g_pat" in [one["field"] for one in report["vcpus"][0]["inexact"]]


def test_ended_by_a_signal(tmp_path: Path) -> None:
    with relaying(tmp_path) as (process, source, listener):
        source.sendall(STREAM[:100_000])
        destination = listener.accept()[0]
        with destination:
            destination.settimeout(SECONDS)
            assert len(exactly(destination, 50_000)) == 50_000
            process.terminate()
            assert everything(source) == SHUT_FAILED
            source.close()
            out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_STAYED
    assert "reason: the relay was interrupted" in out
    assert not (tmp_path / "relay").exists()


def test_no_signal_ends_it_after_the_commit_point(tmp_path: Path) -> None:
    with relaying(tmp_path) as (process, source, listener):
        sending(source, STREAM)
        destination = listener.accept()[0]
        with destination:
            destination.settimeout(SECONDS)
            exactly(destination, len(STREAM))
            assert process.stderr is not None
            assert process.stderr.readline() == f"qmpfilter: waits at unix:{tmp_path / 'relay'}\n"
            for _ in range(3):
                process.terminate()
                assert select.select([process.stderr], [], [], SECONDS)[0]
                assert "still waiting for its word" in process.stderr.readline()
            destination.sendall(SHUT_OK)
        assert everything(source) == SHUT_OK
        source.close()
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert "after the commit point, where nothing stops a migration any more: the relay was interrupted" in out


def test_a_veto(tmp_path: Path) -> None:
    facts = {"schema": "qmpfilter.host/1", "kvm": {"parameters": {"kvm_amd": {"nested": "0"}}}}
    (tmp_path / "host.json").write_text(json.dumps(facts))
    with relaying(tmp_path, "--host", str(tmp_path / "host.json")) as (process, source, listener):
        sending(source, STREAM)
        destination = listener.accept()[0]
        with destination:
            arrived = everything(destination)
        assert everything(source) == SHUT_FAILED
        source.close()
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_VETOED
    passed, words, why = arrived.partition(b"qmpfilter: ")
    # The header of a section stands before its name.
    assert STREAM.startswith(passed[:-6])
    assert words
    assert why.startswith(b"vCPU 0: the destination would not run this guest")
    assert out.startswith("vetoed: stopped before the destination could start the guest")
    assert "reason: vCPU 0:" in out


def test_nobody_at_the_destination(tmp_path: Path) -> None:
    with relaying(tmp_path) as (process, source, listener):
        listener.close()
        source.sendall(STREAM[:8])
        assert everything(source) in (b"", SHUT_FAILED)
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_STAYED
    assert "cannot connect to unix:" in out


@pytest.mark.parametrize("before", ["", "pair:"])
def test_any_free_port_is_told(before: str) -> None:
    argv = [sys.executable, "-m", "qmpfilter", "relay", f"{before}tcp:127.0.0.1:0", "unix:/nowhere"]
    with subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        told = re.fullmatch(rf"qmpfilter: waits at {before}tcp:127\.0\.0\.1:(\d+)\n", process.stderr.readline())
        assert told is not None
        with socket.create_connection(("127.0.0.1", int(told[1])), SECONDS):
            pass
        process.kill()


def test_a_report_that_cannot_be_written_is_told_before_it_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = [f"unix:{tmp_path / 'relay'}", f"unix:{tmp_path / 'incoming'}"]
    assert main(["relay", *ends, "--report", str(tmp_path / "none" / "report")]) == EXIT_HOST
    assert capsys.readouterr().err == f"qmpfilter: {tmp_path / 'none' / 'report'}: No such file or directory\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere", "unix:/a"], "'nowhere' is not an address that can be relayed: tcp:HOST:PORT or unix:PATH is"),
        (["unix:/a", "unix:/b", "--deadline", "idle=never"], "NAME=SECONDS"),
        (["unix:/a", "unix:/b", "--deadline", "lunch=3"], "one of source, connect"),
        (["unix:/a", "unix:/b", "--disks"], 'CONNECT has to be "original"'),
        (["unix:/a", "unix:/b", "--mode", "native"], "announce"),
        (["unix:/a", "unix:/b", "--host", "/nowhere"], "/nowhere: No such file"),
        (["unix:/a", "unix:/b", "--host", "/dev/null"], "/dev/null: not a file of host facts"),
        (["unix:/nowhere/relay", "unix:/b"], "cannot listen on unix:/nowhere/relay"),
    ],
)
def test_wrong_calls_are_told_in_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["relay", *argv]) != 0
    errors = capsys.readouterr().err
    assert said in errors
    assert "Traceback" not in errors
