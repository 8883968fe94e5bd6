# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrates the L1 guest through `qmpfilter relay` or by `qmpfilter migrate`: ``python3 -m inhost.relayed SPEC.json``.

The specification has the guest's command line and symbols, the vCPUs' letters, migration capabilities, the
command and its options, and how often to migrate. What reaches each destination is recorded. Leaves ``streamN`` and
``reportN.json`` in the directory ``out``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .machine import Machine
from .relay import RecordingRelay
from .waiting import listens, wait_until

SECONDS = 300.0
TOUCHED = ("return-path", "events")
"""Capabilities that `qmpfilter migrate` turns on at the source itself."""


class Journey:
    """A guest that is migrated from QEMU to QEMU on this host."""

    def __init__(self, spec: dict[str, Any], directory: Path) -> None:
        self._spec = spec
        self._directory = directory
        self._runs = [index for index, letter in enumerate(spec["vcpus"]) if letter != "-"]

    def travel(self, out: Path) -> None:
        """Raises Corruption, TimeoutError, or what went wrong."""
        with contextlib.ExitStack() as machines:
            here = machines.enter_context(self._machine("vm0"))
            here.give_way()
            here.wait_for_rounds(dict.fromkeys(self._runs, 0))
            for turn in range(1, self._spec["turns"] + 1):
                there = machines.enter_context(self._machine(f"vm{turn}", incoming=True))
                there.give_way()
                self._migrate(here, there, turn, out)
                if not self._spec["stays"]:
                    here.kill()
                    here = there

    def _machine(self, name: str, incoming: bool = False) -> Machine:
        # A QMP socket serves one client at a time.
        second = ["-qmp", f"unix:{self._directory / name}.second,server=on,wait=off"]
        arguments = [*self._spec["arguments"], *second]
        return Machine(self._directory, name, arguments, self._spec["symbols"]["contexts"], incoming)

    def _migrate(self, source: Machine, destination: Machine, turn: int, out: Path) -> None:
        incoming, recorded, listen = (self._directory / f"{name}{turn}" for name in ("incoming", "recorded", "relay"))
        over_qmp = self._spec["command"] == "migrate"
        for end in (source, destination):
            alone = over_qmp and end is source
            end.configure([*self._spec["capabilities"], *([] if alone else TOUCHED)], self._spec["parameters"])
        destination.qmp.command("migrate-incoming", uri=f"unix:{incoming}")
        recorder = RecordingRelay(recorded, incoming, self._directory)
        report = out / f"report{turn}.json"
        begin = (
            ["migrate", "--qmp", f"{self._directory / source.name}.second"]
            if over_qmp
            else ["relay", f"unix:{listen}"]
        )
        argv = [*begin, f"unix:{recorded}", "--report", str(report), *self._spec["options"]]
        relay = subprocess.Popen([sys.executable, "-m", "qmpfilter", *argv])
        try:
            before = source.progress().rounds
            if not over_qmp:
                wait_until(lambda: listens(listen), SECONDS, "the relay's socket", 0.05)
                source.qmp.command("migrate", uri=f"unix:{listen}")
            if "postcopy-ram" in self._spec["capabilities"]:
                wait_until(lambda: _transferred(source) > 0, SECONDS, "the first page", 0.02)
                source.qmp.command("migrate-start-postcopy")
            relay.wait(SECONDS)
        finally:
            relay.kill()
            relay.wait(SECONDS)
        runner = source if self._spec["stays"] else destination
        reached = {index: source.progress().rounds.get(index, before.get(index, [0]))[-1] for index in self._runs}
        wait_until(lambda: _status(runner) == "running", SECONDS, f"the guest to run on the {runner.name}", 0.1)
        runner.wait_for_rounds(reached)
        channels = recorder.finish(SECONDS)
        shutil.copy(next(one for one in channels if one.role() == "stream").forward, out / f"stream{turn}")


def _transferred(source: Machine) -> int:
    sent: int = source.qmp.command("query-migrate").get("ram", {}).get("transferred", 0)
    return sent


def _status(machine: Machine) -> str:
    return str(machine.qmp.command("query-status")["status"])


if __name__ == "__main__":
    specification = Path(sys.argv[1])
    work = specification.parent.absolute()
    Journey(json.loads(specification.read_text()), work).travel(work / "out")
