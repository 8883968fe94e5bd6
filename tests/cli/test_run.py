# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter run`, and the commands that ask it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpfilter.cli.main import main
from tests.helpers.daemon import DaemonProcess

IN_USE = os.strerror(errno.EADDRINUSE)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as process:
        yield process


class Said:
    """What a command printed and returned."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        self.status = main(arguments)
        self.out, self.errors = capsys.readouterr()


def test_all_of_them(
    daemon: DaemonProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    socket = ("--socket", str(daemon.socket))
    for command, said in (("off", "everything passes as it is"), ("on", "migrations are filtered")):
        assert Said(capsys, command, *socket).out == f"{said}\n"
        assert json.loads(Said(capsys, "status", *socket, "--json").out)["off"] is (command == "off")
    assert Said(capsys, "reload", *socket).out.startswith("configuration: /")

    status = Said(capsys, "status", *socket)
    assert (status.status, status.errors) == (0, "")
    assert f"process {daemon.process.pid}, since " in status.out
    assert "  0 of at most 64 sessions run\n  mode annex, verdict enforce\n" in status.out
    assert json.loads(Said(capsys, "status", *socket, "--json").out)["running"] == 0
    assert Said(capsys, "sessions", *socket).out == "no sessions\n"

    started = Said(capsys, "start", "unix:here", "unix:there", "--mode", "observe", "--accept", "a-loss", *socket)
    assert (started.status, started.errors) == (0, "")
    name, _, waits = started.out.partition(" ")
    assert waits == f"waits at unix:{tmp_path / 'here'}\n"
    again = Said(capsys, "start", "unix:here", "unix:there", *socket)
    assert (again.status, again.errors) == (3, f"qmpfilter: cannot listen on unix:{tmp_path / 'here'}: {IN_USE}\n")
    waiting = Said(capsys, "sessions", *socket).out.splitlines()
    assert (waiting[0].split()[:3], waiting[1].split()[:3]) == (["session", "state", "bytes"], [name, "waiting", "0"])
    assert f"connect: unix:{tmp_path / 'there'}\nmode: observe\n" in Said(capsys, "show", name, *socket).out
    assert Said(capsys, "stop", name, *socket).out.startswith(f"{name} was asked to stop")
    daemon.report(name)

    shown = Said(capsys, "show", name, *socket).out
    assert shown.startswith(f"session: {name}\n")
    assert "outcome: failed\nreason: the operator stopped it\n" in shown
    assert json.loads(Said(capsys, "show", name, *socket, "--json").out)["outcome"] == "failed"
    # What a guest that arrives has besides.
    path = daemon.state / f"sessions/{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"records": ["/r/vcpu0.svm2", "/r/vcpu1.svm2"]}))
    assert "\nrecords: /r/vcpu0.svm2, /r/vcpu1.svm2\n" in Said(capsys, "show", name, *socket).out
    (ended,) = json.loads(Said(capsys, "sessions", *socket, "--json").out)["ended"]
    assert (ended["session"], ended["outcome"]) == (name, "failed")
    assert "the operator stopped it" in Said(capsys, "sessions", *socket).out

    assert Said(capsys, "stop", name, *socket).errors == f"qmpfilter: session {name} has ended\n"
    missing = Said(capsys, "show", "20260101T000000-00000000", *socket)
    assert (missing.status, missing.errors) == (3, "qmpfilter: there is no session 20260101T000000-00000000\n")
    assert Said(capsys, "show", "../../etc/passwd", *socket).errors == (
        "qmpfilter: there is no session ../../etc/passwd\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("sessions",),
        ("show", "x"),
        ("stop", "x"),
        ("start", "tcp::0", "unix:x"),
        ("reload",),
        ("off",),
        ("on",),
    ],
)
def test_no_daemon(command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "control.sock"
    said = Said(capsys, *command, "--socket", str(path))
    assert (said.status, said.out) == (3, "")
    assert said.errors == f"qmpfilter: no daemon answers at {path}: start it with 'qmpfilter run'\n"


def test_the_configuration_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "q.toml"
    path.write_text('mode = "observe"')
    assert Said(capsys, "run", "--config", str(path), "--check-config").out == f"{path}: fine\n"
    path.write_text('mood = "observe"')
    for more in ((), ("--check-config",)):
        said = Said(capsys, "run", "--config", str(path), *more)
        assert (said.status, said.errors) == (3, f"qmpfilter: {path}: mood: no such key\n")
