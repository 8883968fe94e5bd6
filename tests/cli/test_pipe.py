# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter pipe` between two pipes, as QEMU's migrate exec: starts it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from qmpfilter.cli.main import EXIT_HOST, main
from qmpfilter.cli.policy_options import EXIT_STAYED, EXIT_VETOED
from qmpfilter.relay.session import SHUT_FAILED
from tests.helpers.fixtures import fixtures
from tests.helpers.migration import everything, exactly
from tests.qmp.fake import SECONDS, SHUT_OK, STREAM

ONE_WAY = next(fixture for fixture in fixtures() if fixture.name == "mid-l2").file("stream")
"""A whole migration that asks for no return path."""


class Piping(NamedTuple):
    """The process, its pipes, and the destination that waits."""

    process: subprocess.Popen[bytes]
    stream: IO[bytes]
    answer: IO[bytes]
    destination: socket.socket

    def end(self) -> tuple[int, str]:
        """Exit status and standard error, when it has ended on its own."""
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode()
        return self.process.wait(SECONDS), said


@contextmanager
def piping(directory: Path, *options: str) -> Iterator[Piping]:
    with socket.socket(socket.AF_UNIX) as destination:
        destination.settimeout(SECONDS)
        destination.bind(str(directory / "incoming"))
        destination.listen()
        argv = ["pipe", f"unix:{directory / 'incoming'}", "--report", str(directory / "report"), *options]
        with subprocess.Popen(
            [sys.executable, "-m", "qmpfilter", *argv],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield Piping(process, process.stdin, process.stdout, destination)
            finally:
                process.kill()


def outcome(directory: Path) -> str:
    return str(json.loads((directory / "report").read_text())["outcome"])


def test_completed(tmp_path: Path) -> None:
    with piping(tmp_path) as run:
        writer = threading.Thread(target=write_until_it_breaks, args=(run, STREAM))
        writer.start()
        destination = run.destination.accept()[0]
        with destination:
            destination.settimeout(SECONDS)
            assert len(exactly(destination, len(STREAM))) == len(STREAM)
            writer.join(SECONDS)
            destination.sendall(SHUT_OK)
        assert run.answer.read() == SHUT_OK
        run.stream.close()
        status, said = run.end()
    assert status == 0
    assert said.startswith("completed: the destination runs the guest\n")
    assert outcome(tmp_path) == "completed"


def write_until_it_breaks(run: Piping, stream: bytes) -> int:
    """How much of a stream was taken before nobody read any more."""
    sent = 0
    try:
        while sent < len(stream):
            sent += run.stream.write(stream[sent : sent + 4096]) or 0
    except BrokenPipeError:
        pass
    return sent


def test_no_return_path_is_refused_before_the_guest_is_sent(tmp_path: Path) -> None:
    with piping(tmp_path) as run:
        assert write_until_it_breaks(run, ONE_WAY) < 200_000 < len(ONE_WAY)
        status, said = run.end()
    assert status == EXIT_VETOED
    assert "turn the migration capability return-path on" in said
    assert outcome(tmp_path) == "vetoed"


def test_a_veto(tmp_path: Path) -> None:
    facts = {"schema": "qmpfilter.host/1", "kvm": {"parameters": {"kvm_amd": {"nested": "0"}}}}
    (tmp_path / "host.json").write_text(json.dumps(facts))
    with piping(tmp_path, "--host", str(tmp_path / "host.json")) as run:
        writer = threading.Thread(target=write_until_it_breaks, args=(run, STREAM))
        writer.start()
        with run.destination.accept()[0] as destination:
            assert len(everything(destination)) < len(STREAM)
        assert run.answer.read() == SHUT_FAILED
        writer.join(SECONDS)
        run.stream.close()
        status, said = run.end()
    assert status == EXIT_VETOED
    assert "reason: vCPU 0:" in said


def test_a_signal(tmp_path: Path) -> None:
    with piping(tmp_path) as run:
        run.stream.write(STREAM[:30_000])
        destination = run.destination.accept()[0]
        with destination:
            destination.settimeout(SECONDS)
            assert destination.recv(1)
            run.process.terminate()
            assert run.answer.read() in (SHUT_FAILED, b"")
        run.stream.close()
        status, said = run.end()
    assert status == EXIT_STAYED
    assert "reason: the relay was interrupted" in said


def test_a_source_that_cancels(tmp_path: Path) -> None:
    with piping(tmp_path) as run:
        run.stream.write(STREAM[:30_000])
        run.stream.close()
        status, _ = run.end()
    assert status == EXIT_STAYED
    assert outcome(tmp_path) == "cancelled"


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["nowhere"], "is not an address"), (["unix:/a"], "are not the pipes that QEMU's migrate exec: gives")],
)
def test_wrong_calls_are_told_in_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipe", *argv]) == EXIT_HOST
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
