# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter run`, and the commands that ask it."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpfilter.cli import control
from qmpfilter.cli.main import main
from qmpfilter.daemon.switch import KillSwitch
from tests.helpers.daemon import DaemonProcess
from tests.qmp.fake import FakeQemu

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
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    at = ("--socket", str(daemon.socket))
    for command, said in (("off", "everything passes as it is"), ("on", "migrations are filtered")):
        assert Said(capsys, command, *at).out == f"{said}\n"
        assert json.loads(Said(capsys, "status", *at, "--json").out)["off"] is (command == "off")
    assert Said(capsys, "reload", *at).out.startswith("configuration: /")

    status = Said(capsys, "status", *at)
    assert (status.status, status.errors) == (0, "")
    assert f"process {daemon.process.pid}, since " in status.out
    assert "  0 of at most 64 sessions run\n  mode annex, verdict enforce\n" in status.out
    assert json.loads(Said(capsys, "status", *at, "--json").out)["running"] == 0
    assert Said(capsys, "sessions", *at).out == "no sessions\n"

    started = Said(capsys, "start", "unix:here", "unix:there", "--mode", "observe", "--accept", "l1-cet", *at)
    assert (started.status, started.errors) == (0, "")
    name, _, waits = started.out.partition(" ")
    assert waits == f"waits at unix:{tmp_path / 'here'}\n"
    again = Said(capsys, "start", "unix:here", "unix:there", *at)
    assert (again.status, again.errors) == (3, f"qmpfilter: cannot listen on unix:{tmp_path / 'here'}: {IN_USE}\n")
    waiting = Said(capsys, "sessions", *at).out.splitlines()
    assert (waiting[0].split()[:3], waiting[1].split()[:3]) == (["session", "state", "bytes"], [name, "waiting", "0"])
    assert f"connect: unix:{tmp_path / 'there'}\nmode: observe\n" in Said(capsys, "show", name, *at).out
    assert Said(capsys, "stop", name, *at).out.startswith(f"{name} was asked to stop")
    daemon.report(name)

    shown = Said(capsys, "show", name, *at).out
    assert shown.startswith(f"session: {name}\n")
    assert "outcome: stopped\nreason: the operator stopped it\n" in shown
    assert json.loads(Said(capsys, "show", name, *at, "--json").out)["outcome"] == "stopped"
    # What a guest that arrives has besides.
    path = daemon.state / f"sessions/{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"records": ["/r/vcpu0.svm2", "/r/vcpu1.svm2"]}))
    assert "\nrecords: /r/vcpu0.svm2, /r/vcpu1.svm2\n" in Said(capsys, "show", name, *at).out
    (ended,) = json.loads(Said(capsys, "sessions", *at, "--json").out)["ended"]
    assert (ended["session"], ended["outcome"]) == (name, "stopped")
    *_, row, reason = Said(capsys, "sessions", *at).out.splitlines()
    assert row.split() == [name, "stopped", f"unix:{tmp_path / 'here'}", f"unix:{tmp_path / 'there'}"]
    assert reason == "    the operator stopped it"

    assert Said(capsys, "stop", name, *at).errors == f"qmpfilter: session {name} has ended\n"
    missing = Said(capsys, "show", "20260101T000000-00000000", *at)
    assert (missing.status, missing.errors) == (3, "qmpfilter: there is no session 20260101T000000-00000000\n")
    assert Said(capsys, "show", "../../etc/passwd", *at).errors == (
        "qmpfilter: there is no session ../../etc/passwd\n"
    )


def test_a_source_that_is_taken_over(
    daemon: DaemonProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeQemu(tmp_path / "source") as source, FakeQemu(tmp_path / "destination", incoming=True) as destination:
        ends = (f"qmp:{source.path}", f"qmp:{destination.path}")
        said = Said(capsys, "start", *ends, "--socket", str(daemon.socket))
        name, _, rest = said.out.partition(" ")
        assert (said.status, said.errors, rest) == (0, "", f"has taken over {source.path}\n")
        assert daemon.report(name)["outcome"] == "completed"


def test_a_source_that_cannot_be_taken_over(
    daemon: DaemonProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Said(capsys, "start", f"qmp:{tmp_path}/none", "tcp:127.0.0.1:1", "--socket", str(daemon.socket))
    why = f"cannot connect to the QMP socket {tmp_path}/none: No such file or directory"
    assert (said.status, said.out) == (3, "")
    assert said.errors.partition(": ")[2].partition(": ")[2] == f"{why}\n"
    assert "qemu.qmp" not in daemon.log()


def test_a_source_that_says_nothing_yet(
    daemon: DaemonProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_BEGIN_SECONDS", 0.0)
    with FakeQemu(tmp_path / "source") as source:
        source.silent.add("query-name")
        said = Said(capsys, "start", f"qmp:{source.path}", "tcp:127.0.0.1:1", "--socket", str(daemon.socket))
    name, _, rest = said.out.partition(" ")
    assert (said.status, said.errors) == (0, "")
    assert rest == f"has not begun yet at {source.path}; 'qmpfilter show' tells how far it is\n"
    daemon.ask("stop", session=name)


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("sessions",),
        ("show", "x"),
        ("stop", "x"),
        ("start", "tcp::0", "unix:x"),
        ("reload",),
    ],
)
def test_no_daemon(command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "control.sock"
    said = Said(capsys, *command, "--socket", str(path))
    assert (said.status, said.out) == (3, "")
    assert said.errors == f"qmpfilter: no daemon answers at {path}: start it with 'qmpfilter run'\n"


@pytest.fixture(params=["no daemon", "a hung daemon"])
def nobody(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The control socket of a daemon that does not answer."""
    monkeypatch.setattr(control, "_SWITCH_SECONDS", 0.05)
    path = tmp_path / "new" / "run" / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        if request.param == "a hung daemon":
            path.parent.mkdir(parents=True)
            listener.bind(str(path))
            listener.listen()
        yield path


def test_the_kill_switch_needs_no_daemon(nobody: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = nobody.with_name("off")
    said = Said(capsys, "off", "--socket", str(nobody))
    assert (said.status, said.errors, file.exists()) == (0, "", True)
    assert said.out == (f"everything passes as it is; no daemon answers at {nobody}, so {file} was made here\n")
    assert stat.S_IMODE(nobody.parent.stat().st_mode) == 0o755
    assert json.loads(Said(capsys, "off", "--socket", str(nobody), "--json").out) == {
        "off": True, "without_daemon": str(file),
    }  # fmt: skip
    said = Said(capsys, "on", "--socket", str(nobody))
    assert (said.status, said.errors, file.exists()) == (0, "", False)
    assert said.out == (f"migrations are filtered; no daemon answers at {nobody}, so {file} was removed here\n")


def test_the_clusters_switch_is_not_undone_without_the_daemon(
    nobody: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody.parent.mkdir(parents=True, exist_ok=True)
    switch = KillSwitch(nobody.with_name("off"))
    switch.follow(True)
    said = Said(capsys, "on", "--socket", str(nobody))
    assert (said.status, switch.is_clusters) == (3, True)
    assert "'qmpfilter on --all' ends that" in said.errors


def test_a_daemon_that_hangs_is_sent_nothing_that_it_would_do_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_SWITCH_SECONDS", 0.05)
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert Said(capsys, "on", "--socket", str(path)).status == 0
        listener.setblocking(False)
        late, _ = listener.accept()
        assert late.recv(100) == b'{"op": "status"}\n'
        late.close()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_switch_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    said = Said(capsys, "off", "--socket", str(tmp_path / "file" / "run" / "control.sock"))
    assert (said.status, said.errors) == (3, f"qmpfilter: {tmp_path}/file/run: Not a directory\n")


def test_the_configuration_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "q.toml"
    path.write_text('mode = "observe"')
    assert Said(capsys, "run", "--config", str(path), "--check-config").out == f"{path}: fine\n"
    path.write_text('mood = "observe"')
    for more in ((), ("--check-config",)):
        said = Said(capsys, "run", "--config", str(path), *more)
        assert (said.status, said.errors) == (3, f"qmpfilter: {path}: mood: no such key\n")
