# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirt-python whose hypervisors are made up; the domain really sends a recorded stream to where it is told."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest

from qmpfilter.libvirt.loop import EventThread
from tests.helpers.migration import PART, SECONDS, SHUT_OK, STREAM
from tests.qmp.fake import PAGE_LINES

__all__ = ["SOURCE", "TARGET", "UUID", "FakeDomain", "FakeLibvirt", "libvirtError"]

SOURCE, TARGET = "qemu:///source", "qemu:///target"
UUID = "6d1ad8f8-2f3e-4f5c-9c8e-3a8d54d7b0a1"
_RUNNING, _SHUT_OFF = (1, 1), (5, 0)
_MONITOR = {
    "info status": "VM status: paused (finish-migrate)\r\n",
    "info registers -a": "CPU#0\nEFER=0000000000001d01\nCPU#1\nEFER=0000000000000d01",
}


class libvirtError(Exception):
    """As in the binding."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self._code = code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return self._code


class FakeLibvirt:
    """Two hosts and one guest, which is at the first.

    :ivar said: why a migration is refused at its beginning
    :ivar fails_late: why it fails after the stream has arrived: then the source goes on
    :ivar held: the source stops in RAM until this is set
    :ivar calls: what was done to the domain, with parameters and flags of a migration
    :ivar sent: the source has sent some of its RAM
    :ivar read: what QEMU's monitor was asked for guest memory
    :ivar tried: how often somebody connected
    :ivar away: URIs that nobody answers at
    """

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, int] | None] = {SOURCE: _RUNNING, TARGET: None}
        self.said = ""
        self.fails_late = ""
        self.held: threading.Event | None = None
        self.sent = threading.Event()
        self.calls: list[tuple[str, Any, int]] = []
        self.away: set[str] = set()
        self.tried = 0
        self.read: list[str] = []
        self.metadata: str | None = None
        self.persistent = False
        self.stats: dict[str, Any] = {"memory_total": 1 << 26, "memory_remaining": 1 << 20, "memory_iteration": 2}
        self.callbacks: dict[Any, Callable[..., None]] = {}
        self._aborted = threading.Event()

    def modules(self) -> dict[str, ModuleType]:
        """What can be imported."""
        binding, qemu = ModuleType("libvirt"), ModuleType("libvirt_qemu")
        vars(binding).update(open=self._open, libvirtError=libvirtError, registerErrorHandler=lambda *_: None)
        vars(qemu).update(qemuMonitorCommand=self._monitor, qemuMonitorEventRegister=self._register)
        return {"libvirt": binding, "libvirt_qemu": qemu}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """As what an import finds."""
        for name, module in self.modules().items():
            patch.setitem(sys.modules, name, module)
        # The first of the process would stay.
        patch.setattr(EventThread, "_started", True)

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def _open(self, uri: str | None) -> _Connection:
        self.tried += 1
        if uri in self.away:
            raise libvirtError(f"nobody answers at {uri}", 38)
        return _Connection(self, uri or SOURCE)

    def _monitor(self, _domain: object, line: str, _flags: int) -> str:
        if line.startswith("xp "):
            self.read.append(line)
            address = int(line.split()[-1], 16)
            return PAGE_LINES.format(*range(address, address + 4096, 16))
        return _MONITOR[line]

    def _register(self, _conn: object, _domain: object, event: str, call: Callable[..., None], *_: object) -> None:
        self.callbacks[event] = call

    # --- a migration ---------------------------------------------------------------------------

    def migrate(self, how: str, target: str, parameters: dict[str, Any], flags: int) -> None:
        self.calls.append((how, parameters, flags))
        if self.said or target in self.away:
            raise libvirtError(self.said or f"nobody answers at {target}")
        way = urlsplit(parameters["migrate_uri"])
        assert way.hostname is not None
        assert way.port is not None
        with _destination(parameters["listen_address"], way.port) as arrived:
            heard = self._send(way.hostname, way.port)
            if self._aborted.is_set():
                raise libvirtError("canceled by client")
            if SHUT_OK not in heard or not arrived.wait(SECONDS):
                raise libvirtError("the migration failed")
            if self.fails_late:
                raise libvirtError(self.fails_late)
        self.states = {SOURCE: _SHUT_OFF if self.persistent else None, TARGET: _RUNNING}
        self.stats = {"time_elapsed": 120, "downtime": 7, "memory_total": 1 << 26}

    def abort(self) -> None:
        self.calls.append(("abort", None, 0))
        self._aborted.set()
        if self.held is not None:
            self.held.set()

    def _send(self, host: str, port: int) -> bytes:
        heard = b""
        with contextlib.suppress(OSError), socket.create_connection((host, port), SECONDS) as source:
            source.sendall(STREAM[:PART])
            self.sent.set()
            if self.held is not None:
                assert self.held.wait(SECONDS)
            source.sendall(STREAM[PART:])
            while part := source.recv(1 << 16):
                heard += part
                if SHUT_OK in heard:
                    break
        return heard


class _Connection:
    def __init__(self, world: FakeLibvirt, uri: str) -> None:
        self._world, self.uri = world, uri

    def close(self) -> int:
        return 0

    def getURI(self) -> str:
        return self.uri

    def isAlive(self) -> int:
        return 1

    def setKeepAlive(self, *_: int) -> int:
        raise libvirtError("this driver knows no such thing")

    def registerCloseCallback(self, call: Callable[..., None], _opaque: object) -> int:
        self._world.callbacks["close"] = call
        return 0

    def domainEventRegisterAny(self, _domain: object, number: int, call: Callable[..., None], _: object) -> int:
        self._world.callbacks[number] = call
        return number

    def lookupByName(self, name: str) -> FakeDomain:
        if name != "guest":
            raise libvirtError(f"no domain with matching name '{name}'", 42)
        return self._found()

    def lookupByUUIDString(self, text: str) -> FakeDomain:
        if text != UUID:
            raise libvirtError("no domain with matching uuid", 42)
        return self._found()

    def lookupByID(self, number: int) -> FakeDomain:
        if number != 7:
            raise libvirtError(f"no domain with matching id {number}", 42)
        return self._found()

    def _found(self) -> FakeDomain:
        if self._world.states.get(self.uri) is None:
            raise libvirtError("no domain", 42)
        return FakeDomain(self._world, self.uri)


class FakeDomain:
    """The guest, as a host has it."""

    def __init__(self, world: FakeLibvirt, uri: str) -> None:
        self._world, self._uri = world, uri

    def name(self) -> str:
        return "guest"

    def UUIDString(self) -> str:
        return UUID

    def isPersistent(self) -> int:
        return int(self._world.persistent)

    def state(self) -> tuple[int, int]:
        state = self._world.states[self._uri]
        assert state is not None
        return state

    def jobStats(self, _flags: int) -> dict[str, Any]:
        return self._world.stats

    def abortJob(self) -> int:
        self._world.abort()
        return 0

    def suspend(self) -> int:
        self._world.calls.append(("suspend", None, 0))
        return 0

    def migrateStartPostCopy(self) -> int:
        self._world.calls.append(("postcopy", None, 0))
        return 0

    def migrate3(self, target: _Connection, parameters: dict[str, Any], flags: int) -> None:
        self._world.migrate("migrate3", target.uri, parameters, flags)

    def migrateToURI3(self, uri: str, parameters: dict[str, Any], flags: int) -> int:
        self._world.migrate("migrateToURI3", uri, parameters, flags)
        return 0

    def metadata(self, _kind: int, _uri: str, _flags: int) -> str:
        if self._world.metadata is None:
            raise libvirtError("metadata not found", 80)
        return self._world.metadata

    def setMetadata(self, _kind: int, text: str | None, key: str, uri: str, flags: int) -> int:
        self._world.calls.append(("setMetadata", (key, uri), flags))
        self._world.metadata = text
        return 0


@contextmanager
def _destination(host: str, port: int) -> Iterator[threading.Event]:
    """A QEMU that waits; what is given is set when the guest has arrived."""
    arrived = threading.Event()

    def arrive(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end = listener.accept()[0]
            end.settimeout(SECONDS)
            with end:
                count = 0
                while count < len(STREAM) and (part := end.recv(1 << 20)):
                    count += len(part)
                if count >= len(STREAM):
                    end.sendall(SHUT_OK)
                    arrived.set()

    with socket.create_server((host, port)) as listener:
        thread = threading.Thread(target=arrive, args=(listener,), daemon=True)
        thread.start()
        try:
            yield arrived
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(SECONDS)
