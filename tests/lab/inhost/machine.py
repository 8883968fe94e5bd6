# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU with KVM that runs the L1 guest, on the emulated host."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from .console import Progress, read_console
from .qmp import Qmp
from .waiting import Deadline, wait_until

QEMU = "qemu-system-x86_64"
START_SECONDS = 60.0
PROGRESS_SECONDS = 60.0


class Machine:
    """One QEMU process in ``directory``, its QMP session and its serial console.

    ``arguments`` follow the fixed ones; file names in them are relative to the directory.  Use as a context
    manager: the process ends with the block.
    """

    def __init__(
        self, directory: Path, name: str, arguments: list[str], contexts: int, incoming: bool = False
    ) -> None:
        self.name = name
        self._contexts = contexts
        self._console = directory / f"{name}.console"
        self._errors = directory / f"{name}.stderr"
        socket = directory / f"{name}.qmp"
        argv = [QEMU, *arguments, "-qmp", f"unix:{socket},server=on,wait=off", "-serial", f"file:{self._console}"]
        if incoming:
            argv += ["-incoming", "defer"]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        try:
            self.qmp = self._connect(socket)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.qmp.close()
        self._end()

    @property
    def pid(self) -> int:
        """Of the QEMU process."""
        return self._process.pid

    def vcpus(self) -> list[int]:
        """The threads of its vCPUs."""
        return [vcpu["thread-id"] for vcpu in self.qmp.command("query-cpus-fast")]

    def give_way(self) -> None:
        """Its vCPUs, which never rest, leave the host's only processor to everything else."""
        for vcpu in self.vcpus():
            os.sched_setscheduler(vcpu, os.SCHED_IDLE, os.sched_param(0))

    def kill(self) -> None:
        """End QEMU at once."""
        self._end()

    def progress(self) -> Progress:
        """What the guest has printed so far; raises Corruption if it is not what it must be."""
        text = self._console.read_text(errors="replace") if self._console.exists() else ""
        return read_console(text, self._contexts)

    def wait_for_rounds(self, rounds: dict[int, int], seconds: float = PROGRESS_SECONDS) -> None:
        """Waits until each of these vCPUs has printed a round later than the given one."""

        def reached() -> bool:
            self._alive()
            printed = self.progress().rounds
            return all(printed.get(index, [0])[-1] > least for index, least in rounds.items())

        try:
            wait_until(reached, seconds, f"progress of the guest on the {self.name}", interval=0.2)
        except TimeoutError as late:
            raise TimeoutError(f"{late}; wanted rounds after {rounds}, printed:\n{self._tail()}") from late

    def configure(self, capabilities: list[str], parameters: dict[str, Any]) -> None:
        """Sets migration capabilities and parameters."""
        self.qmp.command(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": True} for name in capabilities],
        )
        if parameters:
            self.qmp.command("migrate-set-parameters", **parameters)

    def machine_type(self) -> str:
        """The versioned name, such as pc-i440fx-7.2."""
        return str(self.qmp.command("qom-get", path="/machine", property="type")).removesuffix("-machine")

    def _connect(self, socket: Path) -> Qmp:
        # QEMU makes the socket's file a moment before it listens.
        deadline = Deadline(START_SECONDS, f"QMP session of the {self.name}")
        while True:
            self._alive()
            try:
                return Qmp(socket)
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(min(0.05, deadline.remaining()))

    def _alive(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"the {self.name}'s QEMU ended with {self._process.returncode}:\n{self._tail()}")

    def _tail(self) -> str:
        said = [file.read_text(errors="replace")[-1500:] for file in (self._errors, self._console) if file.exists()]
        return "\n".join(said)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait(START_SECONDS)
