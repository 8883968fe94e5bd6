# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples for other stacks, as far as they can be tried without those: their syntax, and what they do here."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.daemon import DaemonProcess
from tests.helpers.migration import SHUT_OK, STREAM, everything, exactly, sending
from tests.lab.inhost.waiting import wait_until

pytestmark = pytest.mark.lab

SECONDS = 20.0
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
VM = "6d1ad8f8-2f3e-4f5c-9c8e-3a8d54d7b0a1"
SCRIPTS = [
    path
    for path in sorted(EXAMPLES.rglob("*"))
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
]
STACKS = ("nova", "ovirt", "kubevirt")


def test_each_says_how_it_gets_into_the_path_and_that_it_was_not_run() -> None:
    for stack in STACKS:
        heads = [path.read_text() for path in (EXAMPLES / stack).iterdir()]
        assert any("How it gets into the path:" in head for head in heads), stack
        assert any("NOT RUN HERE" in head for head in heads), stack


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell(script: Path) -> None:
    assert os.access(script, os.X_OK) or script.name == "setup-env"
    subprocess.run(["shellcheck", "--severity=warning", script], check=True)


def test_yaml() -> None:
    read = "import sys, yaml; [list(yaml.safe_load_all(open(name))) for name in sys.argv[1:]]"
    # Debian's, which has the library.
    subprocess.run(["/usr/bin/python3", "-c", read, *EXAMPLES.rglob("*.yaml"), *EXAMPLES.rglob("*.yml")], check=True)


def test_nova() -> None:
    told = configparser.ConfigParser()
    told.read_string((EXAMPLES / "nova/nova.conf").read_text())
    assert told["DEFAULT"]["max_concurrent_live_migrations"] == "1"
    assert told["libvirt"]["live_migration_with_native_tls"] == "false"


def test_sudoers() -> None:
    subprocess.run(["/usr/sbin/visudo", "-c", "-q", "-f", EXAMPLES / "ovirt/sudoers.qmpfilter"], check=True)


def test_units(tmp_path: Path) -> None:
    """With their drop-ins; systemd only warns of what it does not know."""
    shutil.copytree(EXAMPLES / "systemd", tmp_path, dirs_exist_ok=True)
    for name in ("qmpfilter.service", "qmpfilter.socket"):
        shutil.copy(EXAMPLES / name, tmp_path)
    units = [tmp_path / "qmpfilter.service", tmp_path / "qmpfilter-relay.service"]
    for unit in units:
        # Whether it is installed does not matter here.
        unit.write_text(unit.read_text().replace("/usr/bin/qmpfilter", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}, capture_output=True, text=True, timeout=SECONDS,
        check=True,
    )  # fmt: skip
    assert str(tmp_path) not in done.stderr
    subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=25", units[1]],
        check=True, capture_output=True, timeout=SECONDS,
    )  # fmt: skip


# --- oVirt ---------------------------------------------------------------------------------------


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[tuple[DaemonProcess, dict[str, str]]]:
    """A daemon, and the environment in which vdsm would run the hook: sudo reaches that daemon, and no other."""
    for point in ("before", "after"):
        directory = tmp_path / f"{point}_vm_migrate_destination"
        directory.mkdir()
        shutil.copy(EXAMPLES / "ovirt/50_qmpfilter", directory)
    with DaemonProcess(tmp_path) as daemon:
        sudo = tmp_path / "sudo"
        sudo.write_text(
            '#!/bin/sh\n[ "$1 $2" = "-n /usr/bin/qmpfilter" ] || exit 1\nshift 2\n'
            f'exec {sys.executable} -m qmpfilter "$@" --socket {daemon.socket}\n'
        )
        sudo.chmod(0o755)
        yield daemon, {
            **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "vmId": VM,
            "QMPFILTER_LISTEN": "tcp:127.0.0.1:0",
            "QMPFILTER_HOOK_STATE": str(tmp_path / "hook"), "QMPFILTER_FACTS": str(tmp_path / "none"),
        }  # fmt: skip


def vdsm(directory: Path, point: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    script = directory / f"{point}_vm_migrate_destination" / "50_qmpfilter"
    return subprocess.run([script], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_ovirt_begins_a_session_and_ends_it(hook: tuple[DaemonProcess, dict[str, str]], tmp_path: Path) -> None:
    daemon, environment = hook
    done = vdsm(tmp_path, "before", environment | {"qmpfilter": "observe"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (session,) = daemon.ask("sessions")["running"]
    assert session["connect"] == "original"
    done = vdsm(tmp_path, "after", environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    report = daemon.report(session["session"])
    assert (report["outcome"], report["mode"]) == ("stopped", "observe")
    # And once more, when there is none.
    assert vdsm(tmp_path, "after", environment).returncode == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vmId": "../x"}, "vmId is not the UUID of a VM"),
        ({"qmpfilter": "everything"}, "none of off, observe, annex and legacy"),
        ({"QMPFILTER_LISTEN": "nonsense"}, "the migration is not begun: qmpfilter: "),
    ],
)
def test_ovirt_ends_what_cannot_be_filtered(
    hook: tuple[DaemonProcess, dict[str, str]], tmp_path: Path, change: dict[str, str], said: str
) -> None:
    done = vdsm(tmp_path, "before", hook[1] | change)
    assert done.returncode == 2
    assert said in done.stderr


# --- KubeVirt ------------------------------------------------------------------------------------


def test_kubevirt_is_chained_before_anybody_connects(tmp_path: Path) -> None:
    program = tmp_path / "qmpfilter"
    # Nothing is known of this host: it could hardly take that guest.
    unknown = """[ "$1" != doctor ] || exec echo '{"schema": "qmpfilter.host/1"}'"""
    program.write_text(f'#!/bin/sh\n{unknown}\nexec {sys.executable} -m qmpfilter "$@"\n')
    program.chmod(0o755)
    sockets = tmp_path / "s"
    sockets.mkdir()
    # Short, because a socket's path may not be long.
    path, storage = sockets / "vm-49152-source.sock", sockets / "vm-49153-source.sock"
    chain = subprocess.Popen(
        [EXAMPLES / "kubevirt/chain", sockets], env={**os.environ, "QMPFILTER": str(program)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    with socket.socket(socket.AF_UNIX) as qemu, socket.socket(socket.AF_UNIX) as nbd:
        try:
            for end, place in ((nbd, storage), (qemu, path)):
                end.bind(str(place))
                end.listen()
                end.settimeout(SECONDS)
            own = path.stat().st_ino
            wait_until(lambda: path.stat().st_ino != own, SECONDS, "the relay in the socket's place", 0.02)
            assert not Path(f"{storage}.qemu").exists()
            with socket.socket(socket.AF_UNIX) as handler:
                handler.settimeout(SECONDS)
                handler.connect(str(path))
                sender = sending(handler, STREAM)
                destination = qemu.accept()[0]
                with destination:
                    arrived = exactly(destination, len(STREAM))
                    sender.join(SECONDS)
                    handler.shutdown(socket.SHUT_WR)
                    destination.sendall(SHUT_OK)
                assert everything(handler) == SHUT_OK
            wait_until(lambda: not path.exists(), SECONDS, "the end of the relay", 0.02)
        finally:
            os.killpg(chain.pid, signal.SIGTERM)
            out = chain.communicate(timeout=SECONDS)[0]
    assert arrived != STREAM
    assert len(arrived) == len(STREAM)
    assert "completed: the destination runs the guest\n" in out
