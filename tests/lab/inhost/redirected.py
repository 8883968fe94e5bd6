# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU, made up, that waits at all addresses of a host with the daemon, and libvirt's hook.

``python3 -m inhost.redirected`` leaves ``out/told.json``: what the hook was answered, the rules that are there then,
and the tables that are there when QEMU is gone.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from qmpfilter.daemon.client import ask
from qmpfilter.daemon.config import Config

from .waiting import wait_until

SECONDS = 60.0


def _nft(*what: str) -> str:
    return subprocess.run(["nft", "list", *what], check=True, capture_output=True, text=True, timeout=SECONDS).stdout


def _hook(domain: str, operation: str, sub: str) -> dict[str, Any]:
    xml = f"<domain><name>guest</name><uuid>{domain}</uuid></domain>"
    what = {"operation": operation, "sub": sub, "extra": "-", "domain": "guest", "xml": xml}
    return ask(Config().socket, "hook", SECONDS, **what)


def main() -> None:
    domain = str(uuid.uuid4())
    with socket.create_server(("0.0.0.0", 0)) as listener:
        argv = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "-uuid", domain, "-incoming"]
        with subprocess.Popen(
            [*argv, "defer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listener.fileno()]
        ) as qemu:
            assert qemu.stdout is not None
            qemu.stdout.readline()
            _hook(domain, "migrate", "begin")
            told = {"answer": _hook(domain, "started", "begin"), "rules": _nft("ruleset")}
    _hook(domain, "stopped", "end")
    wait_until(lambda: _nft("tables") == "", SECONDS, "the rules to go")
    Path("out/told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
