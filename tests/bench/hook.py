# SPDX-License-Identifier: GPL-2.0-or-later
"""How long libvirt waits for its hook when the daemon answers at once, and when the hook has nothing to ask.

The peer is an interpreter that does nothing, started in turn with the hook. libvirt runs the hook several times for
each start of a domain.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

__all__ = ["run"]

_HOOK = Path(__file__).resolve().parents[2] / "hooks/qemu"
_ROUNDS = 30
_XML = b"<domain type='kvm'>\n  <name>g</name>\n" + b"  <!-- a device of a big domain -->\n" * 1500 + b"</domain>\n"
_ANSWER = json.dumps({"xml": _XML.decode()}).encode() + b"\n"
_WANTED_RATIO = 7.0
_PYTHON = [sys.executable, "-IS"]
_RUNS = {
    "an interpreter": [*_PYTHON, "-c", "pass"],
    "the hook, nothing to ask": [*_PYTHON, str(_HOOK), "g", "prepare", "begin", "-"],
    "the hook, a migration": [*_PYTHON, str(_HOOK), "g", "migrate", "begin", "-"],
}


def run() -> bool:
    """Print the figures; True if they are as good as promised."""
    seconds: dict[str, list[float]] = {name: [] for name in _RUNS}
    with tempfile.TemporaryDirectory(prefix="qmpfilter-bench-") as folder, socket.socket(socket.AF_UNIX) as listener:
        home = Path(folder)
        listener.bind(str(home / "s"))
        listener.listen()
        (home / ".config/qmpfilter").mkdir(parents=True)
        (home / ".config/qmpfilter/hook.conf").write_text(f"socket = {home / 's'}\nrequire_daemon = yes\n")
        threading.Thread(target=_answer, args=(listener, _ROUNDS), daemon=True).start()
        for _ in range(_ROUNDS):
            for name, command in _RUNS.items():
                before = time.perf_counter()
                subprocess.run(command, input=_XML, stdout=subprocess.PIPE, check=True, env={"HOME": folder})
                seconds[name].append(time.perf_counter() - before)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peer, *_, hook = medians.values()
    print(f"libvirt's hook, {len(_XML) >> 10} KiB of XML, median of {_ROUNDS} runs:")
    for name, value in medians.items():
        print(f"  {name:<26} {value * 1e3:6.1f} ms")
    print(f"  ratio hook / interpreter   {hook / peer:6.2f}  (wanted: {_WANTED_RATIO:g} or less)")
    return hook / peer <= _WANTED_RATIO


def _answer(listener: socket.socket, times: int) -> None:
    for _ in range(times):
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as file:
            file.readline()
            connection.sendall(_ANSWER)


if __name__ == "__main__":
    sys.exit(0 if run() else 1)
