# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt's hook costs a migration: the program from its start to its end, with a daemon that answers at once.

The peer is Python doing nothing. libvirt waits for the hook twice in each migration that arrives.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

__all__ = ["run"]

_HOOK: Final = Path(__file__).resolve().parents[2] / "hooks/qemu"
_ROUNDS: Final = 21
_SECONDS: Final = 20.0
_MOST_RATIO: Final = 7.0
_XML: Final = f"<domain>\n  <name>guest</name>\n{'  <!-- as long as such a thing is -->' * 400}\n</domain>\n"


def run() -> bool:
    """Print the figures; True if they are as good as promised."""
    with tempfile.TemporaryDirectory(prefix="qmpfilter-bench-") as directory:
        home = Path(directory)
        (home / ".config/qmpfilter").mkdir(parents=True)
        (home / ".config/qmpfilter/hook.conf").write_text(f"socket = {home}/control.sock\nrequire_daemon = yes\n")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{home}/control.sock")
            listener.listen()
            threading.Thread(target=_answer, args=[listener], daemon=True).start()
            hook, nothing = [], []
            for _ in range(_ROUNDS):
                hook.append(_timed([sys.executable, "-IS", str(_HOOK), "guest", "migrate", "begin", "-"], home))
                nothing.append(_timed([sys.executable, "-IS", "-c", "pass"], home))
    ratio = statistics.median(hook) / statistics.median(nothing)
    ours, peers = (f"{statistics.median(times) * 1e3:.0f} ms" for times in (hook, nothing))
    print(f"libvirt's hook, median of {_ROUNDS}: {ours}, where 'python3 -IS -c pass' takes {peers}")
    print(f"  ratio {ratio:.1f}  (wanted: {_MOST_RATIO:g} or less)")
    return ratio <= _MOST_RATIO


def _timed(argv: list[str], home: Path) -> float:
    began = time.monotonic()
    subprocess.run(
        argv, input=_XML, text=True, check=True, capture_output=True, timeout=_SECONDS,
        env={"LC_ALL": "C", "HOME": str(home), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    return time.monotonic() - began


def _answer(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, connection.makefile("rb") as file:
            connection.sendall(json.dumps({"xml": json.loads(file.readline())["xml"]}).encode() + b"\n")
