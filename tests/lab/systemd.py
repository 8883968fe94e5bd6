# SPDX-License-Identifier: GPL-2.0-or-later
"""Real systemds of the hosts' disks on this machine, and qmpfilter as a Debian package to be installed in them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self

from .cache import cached
from .emulator import IN_HOST, JobFailed, Result
from .hosts import Host, download_packages, host_image
from .inhost.waiting import wait_until

BUILD: Final = Path(__file__).parents[2] / "examples/debian/build"
BUILD_SECONDS: Final = 300.0
BOOT_SECONDS: Final = 180.0
END_SECONDS: Final = 60.0
# What the package depends on, and what that does, and the hosts have not.
DEPENDENCIES: Final = (
    *("python3-click", "python3-rich", "python3-markdown-it", "python3-mdurl", "python3-pygments"),
    *("python3-linkify-it", "python3-uc-micro", "python3-colorama"),
)
# What bookworm's depend on besides; trixie's do not, and its package of that name depends on many more.
_OF_BOOKWORM: Final = ("python3-pkg-resources",)
# The program nft, and what that depends on.
NFTABLES: Final = ("nftables", "libnftables1", "libjansson4", "libedit2")
_SCRIPT: Final = Path(__file__).parent / "systemd.sh"
# As systemd.sh has it.
_GROUP: Final = "qmpfilter-lab-"
_ENVIRONMENT: Final = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")


class Systemd:
    """A host's systemd with its services. Use as a context manager: all end with the block.

    The kernel is this machine's: what a service may do is kept by the same calls, and no emulator slows it.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        disk = host_image(self.host).disk
        with contextlib.ExitStack() as stack:
            self._shared = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="systemd-")))
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="systemd-scratch-"))
            namespaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child")
            self._log = self._shared / "log"
            with self._log.open("wb") as log:
                process = subprocess.Popen(
                    ["unshare", *namespaces, str(_SCRIPT), str(disk), str(self._shared), scratch],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            stack.callback(self._end, process)
            wait_until(lambda: self._booted(process), BOOT_SECONDS, "systemd to be process 1")
            self.run(["systemctl", "is-system-running", "--wait"], {}, BOOT_SECONDS)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, argv: list[str], files: Mapping[str, bytes], seconds: float) -> Result:
        """Runs a program there, in a directory with the files and the package ``inhost``.

        Raises JobFailed if it ends with something else than 0, TimeoutExpired if it does not end in time.
        """
        with tempfile.TemporaryDirectory(dir=self._shared) as directory:
            job = Path(directory)
            shutil.copytree(IN_HOST, job / "inhost", ignore=shutil.ignore_patterns("__pycache__"))
            (job / "out").mkdir()
            for name, content in files.items():
                (job / name).write_bytes(content)
            enter = ["nsenter", f"--target={self._first}", "--all", f"--wdns=/shared/{job.name}", *_ENVIRONMENT]
            done = subprocess.run(
                [*enter, *argv],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds,
                check=False,
            )  # fmt: skip
            output = done.stdout.decode(errors="replace")
            if done.returncode:
                raise JobFailed(f"{' '.join(argv)} on {self.host.name} ended with {done.returncode}:\n{output}")
            return Result(output, {file.name: file.read_bytes() for file in (job / "out").iterdir()})

    def _booted(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, self._log.read_text(errors="replace")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        # Until then it is the script that has not left this machine's root.
        if not children or Path(f"/proc/{children[0]}/comm").read_text().strip() != "systemd":
            return False
        self._first = int(children[0])
        return Path(f"/proc/{self._first}/root/run/systemd/private").exists()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """With the first process of the namespace all others end; their control groups then are empty."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(END_SECONDS)
        top = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line)
        group = Path(top) / f"{_GROUP}{self._shared.name}"
        wait_until(lambda: _removed(group), END_SECONDS, f"{group} to be empty")


def _removed(group: Path) -> bool:
    """Whether a control group, and those in it, are gone now."""
    with contextlib.suppress(FileNotFoundError):
        for inner, _, _ in os.walk(group, topdown=False):
            try:
                os.rmdir(inner)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                return False
    return True


def dependencies(host: Host) -> dict[str, bytes]:
    """What qmpfilter's package asks for, as :func:`packages_of` gives it."""
    return packages_of(host, (*DEPENDENCIES, *(_OF_BOOKWORM if host.release == "bookworm" else ())))


def packages_of(host: Host, names: Sequence[str]) -> dict[str, bytes]:
    """Packages of the host's release by their files' names. Raises as :func:`tests.lab.hosts.host_image` does."""
    key = f"{host.name}-packages-{'-'.join(name.removeprefix('python3-') for name in names)}"
    directory = cached(key, partial(download_packages, host, names))
    return {file.name: file.read_bytes() for file in directory.glob("*.deb")}


def build(directory: Path, revision: int) -> Path:
    """The package, built into a directory. Raises CalledProcessError."""
    told = subprocess.run(
        [BUILD, directory, str(revision)],
        env={**os.environ, "PYTHON": sys.executable, "SOURCE_DATE_EPOCH": "1767225600"},
        check=True, capture_output=True, text=True, timeout=BUILD_SECONDS,
    )  # fmt: skip
    return Path(told.stdout.strip())
