# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon in a process of its own, with all that it has in one directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qmpfilter.daemon.client import ask
from qmpfilter.errors import HostError

__all__ = ["DaemonProcess"]

SECONDS = 60.0


class DaemonProcess:
    """Use as a context manager; :meth:`start` starts another after this one ended.

    :param directory: where its configuration, sockets and reports are
    :param config: TOML that is added
    :param before: the program, with its arguments, that starts it
    :param environment: what it finds there besides
    """

    def __init__(
        self,
        directory: Path,
        config: str = "",
        *,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._before = before
        self._environment = {**os.environ, **(environment or {})}
        self.config = directory / "qmpfilter.toml"
        self.runtime, self.state = directory / "run", directory / "state"
        self.base = f'runtime_directory = "{self.runtime}"\nstate_directory = "{self.state}"\n'
        self.config.write_text(self.base + config)
        self.socket = self.runtime / "control.sock"
        self._log = directory / "daemon.log"
        self.start()

    def start(self) -> None:
        """Until it answers."""
        with self._log.open("ab") as log:
            self._said_before = log.tell()
            self.process = subprocess.Popen(
                [*self._before, sys.executable, "-m", "qmpfilter", "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment,
            )  # fmt: skip
        self.until(lambda: self.process.poll() is not None or self._answers(), "its start")
        assert self.process.poll() is None, self.log()

    def revived(self) -> Self:
        """Itself, started again if it has ended."""
        if self.process.poll() is not None:
            self.start()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for session in self.ask("sessions")["running"] if self._answers() else ():
            self.ask("stop", session=session["session"])
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(SECONDS)

    def log(self) -> str:
        """What it said since it was started."""
        return self._log.read_bytes()[self._said_before :].decode()

    def ask(self, op: str, **what: Any) -> dict[str, Any]:
        """Its answer."""
        return ask(self.socket, op, SECONDS, **what)

    def report(self, session: str) -> dict[str, Any]:
        """A session's, once there is one."""
        told: dict[str, Any] = {}

        def ended() -> bool:
            told.update(self.ask("show", session=session))
            return "report" in told

        self.until(ended, f"the report of {session}")
        report: dict[str, Any] = told["report"]
        return report

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something, but not for ever."""
        late = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < late, f"{what} took too long; the daemon said: {self.log()}"
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("status")["pid"] == self.process.pid)
        except HostError:
            return False
