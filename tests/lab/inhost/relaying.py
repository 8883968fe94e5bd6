# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a command while `qmpfilter relay` waits for what it does: ``python3 -m inhost.relaying SPEC.json``.

The specification has the relay's ``address`` and ``port`` to listen at, its other arguments as ``relay``, and the
``command``. Leaves ``report.json`` and ``said.json`` (the command's ``status`` and ``text``) in ``out``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .waiting import wait_until

SECONDS = 240.0
_LISTENS = "0A"  # proc(5), /proc/net/tcp


def main(spec: dict[str, Any], out: Path) -> None:
    """Raises RuntimeError, TimeoutError or TimeoutExpired."""
    address, port = spec["address"], spec["port"]
    argv = ["relay", f"tcp:{address}:{port}", *spec["relay"], "--report", str(out / "report.json")]
    relay = subprocess.Popen([sys.executable, "-m", "qmpfilter", *argv])
    try:
        wait_until(lambda: _alive(relay) and listens(address, port), SECONDS, "the relay to listen", 0.2)
        done = subprocess.run(spec["command"], capture_output=True, text=True, timeout=SECONDS)
        relay.wait(SECONDS)
    finally:
        relay.kill()
        relay.wait(SECONDS)
    said = {"status": done.returncode, "text": done.stdout + done.stderr}
    (out / "said.json").write_text(json.dumps(said))


def _alive(relay: subprocess.Popen[bytes]) -> bool:
    if relay.poll() is not None:
        raise RuntimeError(f"the relay ended with {relay.returncode}")
    return True


def listens(address: str, port: int) -> bool:
    """Somebody listens at that port of an IPv4 address."""
    wanted = bytes(map(int, reversed(address.split(".")))).hex().upper() + f":{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1] == wanted and row[3] == _LISTENS for row in rows)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path("out").absolute())
