# SPDX-License-Identifier: GPL-2.0-or-later
"""A small synchronous QMP client."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from .waiting import Deadline

COMMAND_SECONDS = 60.0


class QmpError(Exception):
    """QEMU answered a command with an error."""


class Qmp:
    """A QMP session over a UNIX socket, capabilities negotiated.

    Every method raises TimeoutError after COMMAND_SECONDS and EOFError when QEMU has gone.
    """

    def __init__(self, path: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(COMMAND_SECONDS)
        try:
            self._socket.connect(str(path))
            self._read_line(Deadline(COMMAND_SECONDS, "QMP greeting"))
            self.command("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Ends the session; QEMU goes on."""
        self._socket.close()

    def command(self, name: str, **arguments: Any) -> Any:
        """The command's return value.  Argument names have underscores for QMP's hyphens.

        Raises QmpError if QEMU refuses.  Events that come in between are kept in ``events``.
        """
        request = {"execute": name, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        self._socket.settimeout(COMMAND_SECONDS)
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        deadline = Deadline(COMMAND_SECONDS, f"answer to {name}")
        while True:
            message = self._read_line(deadline)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(f"{name}: {message['error']['desc']}")
            else:
                return message["return"]

    def human(self, line: str) -> str:
        """The output of a human monitor command."""
        return str(self.command("human-monitor-command", command_line=line))

    def _read_line(self, deadline: Deadline) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._socket.settimeout(deadline.remaining())
            part = self._socket.recv(1 << 16)
            if not part:
                raise EOFError("QEMU closed the QMP connection")
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message
