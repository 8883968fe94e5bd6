# SPDX-License-Identifier: GPL-2.0-or-later
"""Has a QEMU load each of many streams: ``python3 -m inhost.loading SPEC.json``.

The specification has, by the stream's file name, the command line. ``out/loaded.json`` says of each the status of
the machine afterwards, or with what QEMU ended and what it said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .qmp import Qmp
from .waiting import Deadline

QEMU = "qemu-system-x86_64"
LOAD_SECONDS = 90.0


def load(directory: Path, name: str, arguments: list[str]) -> dict[str, Any]:
    """``status``, or ``returncode`` and ``said``; raises TimeoutError."""
    socket, errors = directory / f"{name}.qmp", directory / f"{name}.stderr"
    # With the serial port that the guest had when it was recorded.
    argv = [QEMU, *arguments, "-S", "-serial", "null", "-qmp", f"unix:{socket},server=on,wait=off"]
    argv += ["-incoming", f"exec:cat {name}"]
    with errors.open("wb") as output:
        process = subprocess.Popen(argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    deadline = Deadline(LOAD_SECONDS, f"the end of loading {name}")
    try:
        while process.poll() is None:
            status = _status(socket)
            if status not in (None, "inmigrate"):
                return {"status": status}
            time.sleep(min(0.1, deadline.remaining()))
        return {"returncode": process.returncode, "said": errors.read_text(errors="replace")[-500:]}
    finally:
        process.kill()
        process.wait(LOAD_SECONDS)


def _status(socket: Path) -> str | None:
    """None as long as QEMU does not answer, or no longer."""
    try:
        session = Qmp(socket)
    except (OSError, EOFError):
        return None
    try:
        return str(session.command("query-status")["status"])
    except (OSError, EOFError):
        return None
    finally:
        session.close()


def main(specification: Path) -> None:
    """Does what the file specifies."""
    spec = json.loads(specification.read_text())
    directory = specification.parent.absolute()
    loaded = {name: load(directory, name, arguments) for name, arguments in spec.items()}
    (directory / "out" / "loaded.json").write_text(json.dumps(loaded))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
