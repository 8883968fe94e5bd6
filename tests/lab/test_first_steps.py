# SPDX-License-Identifier: GPL-2.0-or-later
"""The README's way from nothing to a rollout, each command as it is written there, on a machine that is thrown away.

The machine is this one with all that is written kept in memory; a recorded guest migrates through it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.helpers.migration import STREAM, Ends

pytestmark = pytest.mark.lab

ROOT: Final = Path(__file__).resolve().parents[2]
TRIES: Final = 300
HERE: Final = "127.0.0.1"
MARK: Final = "that ended with"
#: What the text has in the place of what is only known then.
HOST, SESSION = "DESTHOST", "ID"
SETUP: Final = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount --rbind /sys "$1/root/sys"
mount -t tmpfs tmpfs "$1/root/run"
exec chroot "$1/root" bash --noprofile --norc -c "cd '$2' && exec bash --noprofile --norc"
"""


def commands() -> list[str]:
    """Those of the section, in order."""
    text = (ROOT / "README.md").read_text().partition("### From nothing to a rollout\n")[2].partition("\n### ")[0]
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


class Shell:
    """A shell on that machine."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, command: str) -> tuple[int, str]:
        """The exit status, and all that was printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho; echo '{MARK}' $?\n")
        self._process.stdin.flush()
        said: list[str] = []
        for line in self._process.stdout:
            if line.startswith(MARK):
                return int(line.removeprefix(MARK)), "".join(said)
            said.append(line)
        raise AssertionError(f"the shell ended in {command}: {''.join(said)}")

    def wait_for(self, command: str) -> None:
        """Until the command ends well."""
        status, said = self.run(
            f"for try in $(seq {TRIES}); do {command} && break; sleep 0.1; done; test $try -lt {TRIES}"
        )
        assert status == 0, said


@contextmanager
def thrown_away(directory: Path) -> Iterator[Shell]:
    with subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", SETUP, "setup", directory, ROOT],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            yield Shell(process)
        finally:
            process.kill()


def test_every_command_does_what_the_text_says(tmp_path: Path) -> None:
    session = ""
    told: dict[str, str] = {}
    with thrown_away(tmp_path) as shell, Ends(None) as ends:
        for command in commands():
            actual = command.replace(f"tcp:{HOST}:49152", ends.connect).replace(HOST, HERE)
            status, told[command] = shell.run(re.sub(rf"\b{SESSION}$", session, actual))
            # A doctor may find something, wherever this runs.
            assert status == 0 or (command == "qmpfilter doctor" and status == 3), f"{command}: {told[command]}"
            if command.endswith("&"):
                shell.wait_for("qmpfilter status")
            elif command.startswith("qmpfilter start "):
                # Between what the daemon logs.
                found = re.search(r"(\S+) waits at (\S+)", told[command])
                assert found is not None, told[command]
                session = found[1]
                ends.dial(found[2])
                ends.send(STREAM)
                ends.accept()
                ends.arrive(len(STREAM))
                ends.finish()
                shell.wait_for(f"qmpfilter show {session} | grep outcome")
    report = told[f"qmpfilter show {SESSION}"]
    assert "outcome: completed\n" in report
    assert "mode: observe\n" in report
