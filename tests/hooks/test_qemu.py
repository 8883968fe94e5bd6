# SPDX-License-Identifier: GPL-2.0-or-later
"""The hook as libvirt runs it, against a daemon that answers, says nothing, or talks nonsense."""

from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HOOK = Path(__file__).resolve().parents[2] / "hooks/qemu"
SECONDS = 20.0
XML = "<domain><name>g\N{SNOWMAN}</name><password>s3cret</password></domain>\n"

Reply = Callable[[socket.socket], None]


def says(answer: object) -> Reply:
    return lambda connection: connection.sendall(json.dumps(answer).encode() + b"\n")


def in_pieces(connection: socket.socket) -> None:
    for byte in json.dumps({"xml": "<new/>"}).encode() + b"\n":
        connection.send(bytes([byte]))


def hangs(connection: socket.socket) -> None:
    connection.recv(1)


class Fake:
    """A control socket that answers one request, and what was asked."""

    def __init__(self, directory: Path, reply: Reply | None, settings: str) -> None:
        self.asked: dict[str, Any] = {}
        self._home = directory
        self._reply = reply
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(SECONDS)
        path = directory / "control.sock"
        if reply is not None:
            self._listener.bind(str(path))
            self._listener.listen()
        (directory / ".config/qmpfilter").mkdir(parents=True)
        text = f"# a comment\nsocket = {path}  # another\ndeadline = 0.3\n{settings}"
        (directory / ".config/qmpfilter/hook.conf").write_text(text)

    def run(self, *argv: str, xml: str = XML) -> subprocess.CompletedProcess[str]:
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()
        done = subprocess.run(
            [sys.executable, "-IS", str(HOOK), *argv],
            input=xml, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS,
            env={"LC_ALL": "C", "PATH": "/usr/bin", "HOME": str(self._home)},
        )  # fmt: skip
        self._listener.close()
        return done

    def _serve(self) -> None:
        if self._reply is None:
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection, connection.makefile("rb") as file:
            self.asked = json.loads(file.readline())
            self._reply(connection)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Fake]:
    return lambda reply, settings="": Fake(tmp_path, reply, settings)


@pytest.mark.parametrize("operation", ["migrate", "restore"])
@pytest.mark.parametrize("reply", [says({"xml": "<new a='\N{SNOWMAN}'/>"}), in_pieces], ids=["at once", "in pieces"])
def test_the_changed_xml_is_printed(make: Callable[..., Fake], operation: str, reply: Reply) -> None:
    fake = make(reply)
    done = fake.run("g\N{SNOWMAN}", operation, "begin", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("<new")
    assert fake.asked == {
        "op": "hook", "operation": operation, "sub": "begin", "extra": "-", "domain": "g\N{SNOWMAN}", "xml": XML,
    }  # fmt: skip


def test_started_prints_nothing(make: Callable[..., Fake]) -> None:
    done = make(says({"xml": "<new/>"})).run("g", "started", "begin", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("sub", "operation", "status"), [("begin", "started", 1), ("end", "stopped", 0)])
def test_a_veto_is_one_sentence(make: Callable[..., Fake], operation: str, sub: str, status: int) -> None:
    done = make(says({"veto": "its kernel\nrefuses it"})).run("g", operation, sub, "-")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "qmpfilter: its kernel refuses it\n")


BROKEN: dict[str, Reply | None] = {
    "away": None,
    "silent": hangs,
    "gone": lambda connection: connection.close(),
    "rubbish": lambda connection: connection.sendall(b"\xff\xfe\n"),
    "rubbish without a bottom": lambda connection: connection.sendall(b"[" * 200_000 + b"\n"),
    "no characters": says({"xml": "\ud800"}),
    "no object": says([1]),
    "of a wrong kind": says({"xml": 5}),
    "without an end": lambda connection: connection.sendall(b"{"),
    "an error": says({"error": "not understood: sub"}),
}


ANSWERS = [
    *((how, settings, "migrate begin") for how in BROKEN for settings in ("", "require_daemon = yes\n")),
    *((how, "require_daemon = yes\n", "release end") for how in BROKEN),
    ("away", "require_daemon = no\n", "migrate begin"),
    ("away", "", "release end"),
]


@pytest.mark.parametrize(("how", "settings", "operation"), ANSWERS)
def test_without_an_answer_the_settings_decide(
    make: Callable[..., Fake], how: str, settings: str, operation: str
) -> None:
    done = make(BROKEN[how], settings).run("g", *operation.split(), "-")
    vetoed = "yes" in settings and operation == "migrate begin"
    assert (done.returncode, done.stdout) == (int(vetoed), "")
    assert done.stderr.startswith("qmpfilter: the daemon does not answer (")
    assert done.stderr.count("\n") == 1
    assert ("stays where it is" in done.stderr) == vetoed
    assert "s3cret" not in done.stderr


@contextmanager
def qemu(*argv: str) -> Iterator[None]:
    """A process that looks like one."""
    code = "print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, *argv], stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.stdin.close()


NAME = f"guest {uuid.uuid4()}, the first"
UUID = str(uuid.uuid4())
AS_LIBVIRT = f"guest={NAME.replace(',', ',,')},debug-threads=on"
WITH_UUID = f"<domain>\n  <name>{NAME}</name>\n  <uuid>{UUID}</uuid>\n</domain>\n"
WITHOUT = WITH_UUID.replace("uuid>", "other>")


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(("argv", "xml", "waits"), [
    (("-name", AS_LIBVIRT, "-uuid", UUID, "-incoming", "defer"), WITH_UUID, True),
    (("-name", AS_LIBVIRT, "-uuid", UUID), WITH_UUID, False),
    (("-name", AS_LIBVIRT, "-uuid", str(uuid.uuid4()), "-incoming", "defer"), WITH_UUID, False),
    (("-name", AS_LIBVIRT, "-incoming", "defer"), WITHOUT, True),
    (("-name", NAME.replace(",", ",,"), "-incoming", "defer"), WITHOUT, True),
    (("-name", AS_LIBVIRT.replace("first", "first2"), "-incoming", "defer"), WITHOUT, False),
    (("-name", AS_LIBVIRT), WITHOUT, False),
    ((), WITH_UUID, False),
], ids=["arrives", "starts", "another arrives", "by name", "by a bare name", "of a longer name", "starts, by name",
        "no QEMU"])  # fmt: skip
def test_without_a_daemon_a_guest_that_just_starts_is_let_start(
    make: Callable[..., Fake], argv: tuple[str, ...], xml: str, waits: bool, required: bool
) -> None:
    fake = make(None, "require_daemon = yes\n" if required else "")
    with qemu(*argv):
        done = fake.run(NAME, "started", "begin", "-", xml=xml)
    assert (done.returncode, done.stdout) == (int(waits and required), "")
    assert ("stays where it is" in done.stderr) == (waits and required)
    assert ("passes unfiltered" in done.stderr) == (waits and not required)
    assert waits or not done.stderr


MISTAKES = ("colour = red\n", "deadline = soon\n", "socket\n", "deadline = inf\n", "deadline = nan\n",
            "deadline = 0\n", "\xe9 = 1\n")  # fmt: skip
ASKING = ("require_daemon = yes\n", "require_daemon = yes  # since May\nrequire_daemon = no\n")
# Whoever wrote these meant yes, or nobody can tell.
MISSPELT = ("require_daemon = maybe\n", "require_daemon = Yes\n", 'require_daemon = "yes"\n', "require_daemon: yes\n",
            "requires-daemon = true\n", "require_daemon\n")  # fmt: skip
ALLOWING = (
    "",
    "require_daemon = no\n",
    "# require_daemon = yes\n",
    "require_daemon = False\n",
    "require_daemon: no\n",
)
BROKEN_SETTINGS = (
    *((mistake + ASKING[0], True) for mistake in MISTAKES),
    *((asking + MISTAKES[0], True) for asking in ASKING),
    *((misspelt, True) for misspelt in MISSPELT),
    *((mistake + allowing, False) for mistake in MISTAKES[:2] for allowing in ALLOWING),
)


@pytest.mark.parametrize(("settings", "asks"), BROKEN_SETTINGS)
def test_settings_that_make_no_sense_refuse_what_may_require_the_daemon(
    make: Callable[..., Fake], settings: str, asks: bool
) -> None:
    done = make(says({}), settings).run("g", "migrate", "begin", "-")
    assert (done.returncode, done.stdout) == (int(asks), "")
    assert "hook.conf is not understood: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert ("stays where it is" in done.stderr, "passes unfiltered" in done.stderr) == (asks, not asks)


OPERATIONS = {"migrate begin": 1, "restore begin": 1, "started begin": 0, "stopped end": 0, "release end": 0}


@pytest.mark.parametrize("how", ["not understood", "unreadable"])
@pytest.mark.parametrize(("operation", "status"), OPERATIONS.items())
def test_a_mistake_refuses_what_arrives_and_keeps_no_guest_from_starting(
    make: Callable[..., Fake], tmp_path: Path, how: str, operation: str, status: int
) -> None:
    fake = make(says({}), "require_daemon = yes\ncolour = red\n")
    if how == "unreadable":
        path = tmp_path / ".config/qmpfilter/hook.conf"
        path.unlink()
        path.mkdir()
    done = fake.run("g", *operation.split(), "-")
    assert (done.returncode, done.stdout, fake.asked) == (status, "", {})
    wanted = "cannot be read: Is a directory" if how == "unreadable" else "is not understood: colour = red"
    assert wanted in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_comment_in_whatever_encoding_is_a_comment(make: Callable[..., Fake], tmp_path: Path) -> None:
    fake = make(says({"veto": "no"}))
    with (tmp_path / ".config/qmpfilter/hook.conf").open("ab") as file:
        file.write(b"# f\xfcr alle\n")
    assert fake.run("g", "migrate", "begin", "-").stderr == "qmpfilter: no\n"


def test_the_example_has_the_settings_that_there_are(make: Callable[..., Fake]) -> None:
    example = (HOOK.parents[1] / "examples/libvirt/hook.conf").read_text()
    rows = [row for row in example.splitlines() if row and not row.startswith("#")]
    assert [row for row in HOOK.read_text().splitlines() if row.removeprefix("#     ") in rows] == [
        f"#     {row}" for row in rows
    ]
    # What stands last holds: the example's own socket is no daemon's.
    done = make(says({}), "\n".join(row for row in rows if not row.startswith("socket"))).run("g", "migrate", "begin")
    assert (done.returncode, done.stderr) == (0, "")


CARED_FOR_BY_NOBODY = ("prepare begin", "start begin", "reconnect begin", "attach begin", "migrate end", "new begin")


@pytest.mark.parametrize("operation", CARED_FOR_BY_NOBODY)
def test_what_it_does_not_care_about_is_answered_at_once(make: Callable[..., Fake], operation: str) -> None:
    fake = make(says({"veto": "no"}), "require_daemon = yes\n")
    done = fake.run("g", *operation.split(), "-")
    assert (done.returncode, done.stdout, done.stderr, fake.asked) == (0, "", "", {})


def test_it_is_python_3_9_and_of_the_standard_library() -> None:
    tree = ast.parse(HOOK.read_text(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names == {"sys", "os", "json", "socket", "time"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
