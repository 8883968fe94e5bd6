# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP server that says what a test wants, and migrates a recorded stream."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qmpfilter.relay.session import SHUT_FAILED
from qmpfilter.wire.framing import BE32, COMMAND_HEADER
from tests.helpers.fixtures import fixtures

SECONDS = 20.0
SHUT_OK = COMMAND_HEADER.pack(1, 4) + BE32.pack(0)
STREAM = next(fixture for fixture in fixtures() if fixture.name == "mid-return-path").file("stream")
"""A whole migration that asks for a return path; its vCPU is in L2."""

_BEGINNING = 100_000
PAGE_LINES = "".join(f"{{:016x}}: 0x{2 * n:016x} 0x{2 * n + 1:016x}\r\n" for n in range(256))


class FakeQemu:
    """One QEMU. Use as a context manager.

    :ivar commands: what it was told, with arguments
    :ivar refused: commands it refuses, and what it says then
    :ivar silent: commands it does not answer
    :ivar held: what it waits for in the middle of a migration
    :ivar revived: somebody has it go on although its guest was migrated
    :ivar arrived: what came in a migration to it
    """

    def __init__(self, path: Path, *, incoming: bool = False, stream: bytes = STREAM) -> None:
        self.path = path
        self.stream = stream
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.refused: dict[str, str] = {}
        self.silent: set[str] = set()
        self.capabilities = {"events": False, "return-path": False, "multifd": False, "xbzrle": False}
        self.parameters: dict[str, Any] = {"tls-creds": "", "mode": "normal", "max-bandwidth": 1 << 27}
        self.migration: dict[str, Any] = {}
        self.status = "inmigrate" if incoming else "running"
        self.arrived = b""
        self.revived = False
        self.held: threading.Event | None = None
        self._fds: list[int] = []
        self._named: dict[str, int] = {}
        self._client: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def __enter__(self) -> FakeQemu:
        self._run(self._serve)
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        for left in (*self._fds, *self._named.values()):
            socket.close(left)
        for thread in self._threads:
            thread.join(SECONDS)
        assert not any(thread.is_alive() for thread in self._threads)

    def names(self) -> list[str]:
        """The commands that change something."""
        return [name for name, _ in self.commands if not name.startswith(("query-", "qmp_"))]

    def cut(self) -> None:
        """Break the connection; another one is served."""
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)

    def die(self) -> None:
        """Nobody listens any more."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()

    def happen(self, event: str, **data: Any) -> None:
        """Send an event."""
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        stamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
        self._send({"event": event, "data": data, "timestamp": stamp})

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _serve(self) -> None:
        with self._listener:
            while True:
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    return
                with client, contextlib.suppress(OSError):
                    self._client = client
                    self._speak(client)
                self._client = None

    def _speak(self, client: socket.socket) -> None:
        version = {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}
        self._send({"QMP": {"version": version, "capabilities": []}})
        unread, decoder = "", json.JSONDecoder()
        while True:
            data, fds, _, _ = socket.recv_fds(client, 1 << 16, 4)
            self._fds += fds
            if not data:
                return
            unread += data.decode()
            # Nothing has to stand between two commands (docs/interop/qmp-spec.rst), and nothing does.
            with contextlib.suppress(ValueError):
                while unread := unread.strip():
                    request, end = decoder.raw_decode(unread)
                    unread = unread[end:]
                    self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        name, arguments = request["execute"], request.get("arguments", {})
        self.commands.append((name, arguments))
        if name in self.silent:
            return
        answer: dict[str, Any]
        if name in self.refused:
            answer = {"error": {"class": "GenericError", "desc": self.refused[name]}}
        else:
            answer = {"return": getattr(self, "_" + name.replace("-", "_"))(**arguments)}
        self._send(answer | {key: request[key] for key in request.keys() & {"id"}})

    def _send(self, message: dict[str, Any]) -> None:
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):
                client.sendall(json.dumps(message).encode() + b"\r\n")

    # --- commands, by their names --------------------------------------------------------------

    def _qmp_capabilities(self, **_: Any) -> dict[str, Any]:
        return {}

    def _query_name(self) -> dict[str, Any]:
        return {"name": "a guest"}

    def _query_uuid(self) -> dict[str, Any]:
        return {"UUID": "6d1ad8f8-2f3e-4f5c-9c8e-3a8d54d7b0a1"}

    def _query_status(self) -> dict[str, Any]:
        return {"status": self.status, "running": self.status == "running"}

    def _query_migrate(self) -> dict[str, Any]:
        return self.migration

    def _query_migrate_capabilities(self) -> list[dict[str, Any]]:
        return [{"capability": name, "state": state} for name, state in self.capabilities.items()]

    def _query_migrate_parameters(self) -> dict[str, Any]:
        return self.parameters

    def _migrate_set_capabilities(self, capabilities: list[dict[str, Any]]) -> dict[str, Any]:
        self.capabilities |= {one["capability"]: one["state"] for one in capabilities}
        return {}

    def _getfd(self, fdname: str) -> dict[str, Any]:
        self._named[fdname] = self._fds.pop()
        return {}

    def _closefd(self, fdname: str) -> dict[str, Any]:
        socket.close(self._named.pop(fdname))
        return {}

    def _migrate_cancel(self) -> dict[str, Any]:
        return {}

    def _human_monitor_command(self, **arguments: Any) -> str:
        address = int(arguments["command-line"].split()[-1], 16)
        return PAGE_LINES.format(*range(address, address + 4096, 16))

    def _migrate(self, uri: str) -> dict[str, Any]:
        self.migration = {"status": "setup"}
        end = socket.socket(fileno=self._named.pop(uri.removeprefix("fd:")))
        self._run(self._leave, end)
        return {}

    def _migrate_incoming(self, uri: str) -> dict[str, Any]:
        end = socket.socket(fileno=self._named.pop(uri.removeprefix("fd:")))
        self._run(self._arrive, end)
        return {}

    def _leave(self, end: socket.socket) -> None:
        end.settimeout(SECONDS)
        self._move("active")
        said = b""
        with end, contextlib.suppress(OSError):
            if self.capabilities["events"]:
                self.happen("MIGRATION_PASS", **{"pass": 1})
            end.sendall(self.stream[:_BEGINNING])
            if self.held is not None:
                assert self.held.wait(SECONDS)
            end.sendall(self.stream[_BEGINNING:])
            self.status = "finish-migrate"
            if self.capabilities["events"]:
                self.happen("STOP")
            while SHUT_OK not in said and SHUT_FAILED not in said:
                if not (part := end.recv(1 << 16)):
                    break
                said += part
        if SHUT_OK in said:
            self.status = "running" if self.revived else "postmigrate"
            self.migration |= {"total-time": 120, "downtime": 7, "ram": {"total": 1 << 26, "remaining": 0}}
            self._move("completed")
        else:
            self.status = "running"
            self._move("failed")

    def _arrive(self, end: socket.socket) -> None:
        end.settimeout(SECONDS)
        with end, contextlib.suppress(OSError):
            while len(self.arrived) < len(self.stream) and (part := end.recv(1 << 20)):
                self.arrived += part
            if len(self.arrived) < len(self.stream):
                self._move("failed")
                return
            self.status = "running"
            self._move("completed")
            end.sendall(SHUT_OK)

    def _move(self, status: str) -> None:
        self.migration = self.migration | {"status": status}
        if self.capabilities["events"]:
            self.happen("MIGRATION", status=status)
