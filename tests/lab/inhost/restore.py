# SPDX-License-Identifier: GPL-2.0-or-later
"""Restores save images, one after the other, and runs on from each: ``python3 -m inhost.restore SPEC.json``.

The specification has, by the image's file name, the vCPUs' letters and the address of the guest's contexts; the
domains were recorded in a directory of the same name.  ``out/rounds.json`` says how far each guest came.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .console import read_console
from .saveimage import DOMAIN, PROGRESS_SECONDS, libvirtd, virsh
from .waiting import wait_until

ROUNDS = 3  # that each vCPU prints at least


def restore(image: Path, spec: dict[str, Any]) -> dict[int, list[int]]:
    """Rounds by vCPU; raises Corruption, TimeoutError, or CalledProcessError with what virsh said."""
    console = image.parent / "console"
    console.write_text("")

    def rounds() -> dict[int, list[int]]:
        return read_console(console.read_text(errors="replace"), spec["contexts"]).rounds

    runs = [index for index, letter in enumerate(spec["vcpus"]) if letter != "-"]
    virsh("restore", str(image), "--running")
    try:
        wait_until(
            lambda: all(len(rounds().get(index, [])) >= ROUNDS for index in runs), PROGRESS_SECONDS, "progress", 0.2
        )
        return rounds()
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            virsh("destroy", DOMAIN)


def main(specification: Path) -> None:
    """Does what the file specifies."""
    spec = json.loads(specification.read_text())
    directory = specification.parent.absolute()
    with libvirtd("raw"):
        rounds = {name: restore(directory / name, image) for name, image in spec.items()}
    (directory / "out" / "rounds.json").write_text(json.dumps(rounds))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
