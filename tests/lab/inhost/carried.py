# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded migration through the daemon of a host, in the middle of which something is done.

``python3 -m inhost.carried STREAM COMMAND`` sends a part, runs the command by the shell, and sends the rest. It
leaves the session's report in ``out/report.json``.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from qmpfilter.daemon.client import ask
from qmpfilter.daemon.config import Config
from qmpfilter.wire.framing import BE32, COMMAND_HEADER

from .waiting import wait_until

INCOMING = "/run/incoming"
PART = 100_000  # RAM still
SECONDS = 120.0
SHUT_OK = COMMAND_HEADER.pack(1, 4) + BE32.pack(0)


def carry(stream: bytes, command: str) -> dict[str, Any]:
    """The session's report."""
    daemon = partial(ask, Config().socket)
    with socket.socket(socket.AF_UNIX) as waits:
        Path(INCOMING).unlink(missing_ok=True)
        waits.bind(INCOMING)
        waits.listen()
        waits.settimeout(SECONDS)
        begun = daemon("relay", SECONDS, listen="tcp:127.0.0.1:0", connect=f"unix:{INCOMING}")
        host, _, port = begun["listen"].removeprefix("tcp:").rpartition(":")
        with socket.create_connection((host, int(port)), SECONDS) as source:
            source.sendall(stream[:PART])
            with waits.accept()[0] as destination:
                destination.settimeout(SECONDS)
                arrived = 0
                while arrived < PART // 2:
                    arrived += len(destination.recv(1 << 20))
                done = subprocess.run(command, shell=True, check=False, timeout=SECONDS)
                assert done.returncode == 0, f"{command}: {done.returncode}"
                rest = threading.Thread(target=source.sendall, args=[stream[PART:]])
                rest.start()
                while arrived < len(stream) and (part := destination.recv(1 << 20)):
                    arrived += len(part)
                rest.join(SECONDS)
                assert arrived == len(stream), arrived
                destination.sendall(SHUT_OK)
            heard = source.makefile("rb").read()
    assert heard == SHUT_OK, heard
    report: dict[str, Any] = {}

    def ended() -> bool:
        report.update(daemon("show", SECONDS, session=begun["session"]).get("report", {}))
        return bool(report)

    wait_until(ended, SECONDS, "the report", 0.2)
    return report


if __name__ == "__main__":
    stream, command = sys.argv[1:]
    Path("out/report.json").write_text(json.dumps(carry(Path(stream).read_bytes(), command)))
