# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks programs for their version: without a shell, and with a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["DEADLINE", "ask_version", "present"]

#: Seconds; a QEMU answers in well under one, also in three on a host that is emulated itself.
DEADLINE: Final = 10.0
_SHOWN: Final = 200


def present(candidates: Sequence[Path]) -> list[Path]:
    """Those of the candidates that are there, in their order, each program once however many names it has."""
    found: dict[Path, Path] = {}
    for path in candidates:
        if path.is_file():
            found.setdefault(path.resolve(), path)
    return list(found.values())


def ask_version(program: Path, deadline: float = DEADLINE) -> tuple[bool, str]:
    """Run ``PROGRAM --version``.

    :param deadline: seconds until it is killed, with all that it started
    :returns: True and the first line of its output, or False and why there is none
    """
    try:
        process = subprocess.Popen(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return False, f"it cannot be run: {error.strerror}"
    with process:
        try:
            output, _ = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            # Not yet waited for, so its number is still its own.
            os.killpg(process.pid, signal.SIGKILL)
            return False, f"it did not answer within {deadline:g} s"
    if process.returncode < 0:
        return False, f"it was killed by signal {-process.returncode}"
    if process.returncode > 0:
        return False, f"it ended with status {process.returncode}"
    lines = output.decode(errors="replace").splitlines()
    return (True, lines[0].strip()[:_SHOWN]) if lines else (False, "it says nothing")
