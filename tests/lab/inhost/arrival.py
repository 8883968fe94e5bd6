# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads a stream and runs on from it: ``python3 -m inhost.arrival SPEC.json``.

The specification has the command line, the vCPUs' letters, the symbols of the guest, and how many seconds a round may
take; the stream is the file ``stream``.  Before the guest runs on, what it has become is sent once more, to
``out/again``; then every vCPU has to print rounds, and every L1 an exit of its L2.  ``out/progress.json`` says how
far they came.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .machine import Machine
from .waiting import wait_until

LOAD_SECONDS = 60.0
ROUNDS = 3  # that each vCPU prints at least


def arrive(spec: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Rounds by vCPU, and exits of L2 by vCPU; raises Corruption, TimeoutError, or RuntimeError if QEMU ends."""
    contexts = spec["symbols"]["contexts"]
    with Machine(directory, "destination", [*spec["arguments"], "-S"], contexts, incoming=True) as machine:
        machine.configure(["events"], {})
        machine.qmp.command("migrate-incoming", uri=f"exec:cat {directory / 'stream'}")
        try:
            wait_until(lambda: _loaded(machine), LOAD_SECONDS, "end of the load", 0.05)
        except (EOFError, ConnectionError) as gone:
            raise RuntimeError(f"QEMU: {(directory / 'destination.stderr').read_text()[-1500:]}") from gone
        machine.qmp.command("migrate", uri=f"exec:cat > {directory / 'out' / 'again'}")
        wait_until(lambda: _completed(machine), LOAD_SECONDS, "completion of the migration onwards", 0.05)
        machine.qmp.command("cont")
        runs = [index for index, letter in enumerate(spec["vcpus"]) if letter != "-"]
        least = dict.fromkeys(runs, 0)
        for _ in range(ROUNDS):
            machine.wait_for_rounds(least, spec["patience"])
            least = {index: machine.progress().rounds[index][-1] for index in runs}
        in_l2 = [index for index, letter in enumerate(spec["vcpus"]) if letter in "2n"]
        wait_until(
            lambda: all(machine.progress().exits.get(index) for index in in_l2),
            LOAD_SECONDS,
            "an exit of each L2",
            0.2,
        )
        progress = machine.progress()
        return {"rounds": progress.rounds, "exits": progress.exits}


def _loaded(machine: Machine) -> bool:
    return bool(machine.qmp.command("query-status")["status"] != "inmigrate")


def _completed(machine: Machine) -> bool:
    info = machine.qmp.command("query-migrate")
    if info.get("status") == "failed":
        raise RuntimeError(f"the migration onwards failed: {info.get('error-desc', 'no reason given')}")
    return bool(info.get("status") == "completed")


def main(specification: Path) -> None:
    """Does what the file specifies."""
    spec = json.loads(specification.read_text())
    directory = specification.parent.absolute()
    progress = arrive(spec, directory)
    (directory / "out" / "progress.json").write_text(json.dumps(progress))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
