# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts with a real systemd, and qmpfilter as a Debian package to be installed in them."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Final

from .cache import cached
from .emulator import EmulatedHost
from .hosts import Host, HostImage, download_packages, emulator, host_image

BUILD: Final = Path(__file__).parents[2] / "examples/debian/build"
BUILD_SECONDS: Final = 300.0
# What the package depends on, and what that does, and the hosts have not.
DEPENDENCIES: Final = ("python3-click", "python3-rich", "python3-markdown-it", "python3-mdurl", "python3-pygments")


class SystemdHost(EmulatedHost):
    """A booted host whose systemd has come as far as any service needs, and has the agent as one."""

    # A first boot would ask questions, and make caches anew at the emulator's pace.
    init = (
        "/lib/systemd/systemd systemd.condition_first_boot=no systemd.condition_needs_update=no "
        'modules_load=virtio_console systemd.run="/usr/bin/python3 /lab-agent.py"'
    )

    def __init__(self, host: Host) -> None:
        image: HostImage = host_image(host)
        super().__init__(image, emulator())


def dependencies(host: Host) -> dict[str, bytes]:
    """Packages of the host's release by their files' names. Raises as :func:`tests.lab.hosts.host_image` does."""
    key = f"{host.name}-packages-{'-'.join(name.removeprefix('python3-') for name in DEPENDENCIES)}"
    directory = cached(key, partial(download_packages, host, DEPENDENCIES))
    return {file.name: file.read_bytes() for file in directory.glob("*.deb")}


def build(directory: Path, revision: int) -> Path:
    """The package, built into a directory. Raises CalledProcessError."""
    told = subprocess.run(
        [BUILD, directory, str(revision)],
        env={**os.environ, "PYTHON": sys.executable, "SOURCE_DATE_EPOCH": "1767225600"},
        check=True, capture_output=True, text=True, timeout=BUILD_SECONDS,
    )  # fmt: skip
    return Path(told.stdout.strip())
