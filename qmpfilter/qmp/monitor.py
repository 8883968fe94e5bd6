# SPDX-License-Identifier: GPL-2.0-or-later
"""One QMP session over a UNIX socket: everything with a deadline, every failure one sentence.

What qemu.qmp 0.0.6 leaves to its caller: it knows no deadlines, and its listeners go silent instead of ending when
the connection dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError, Runstate

from qmpfilter.errors import DeadlineError, HostError

__all__ = ["CONNECT_SECONDS", "Monitor", "nobody_listens"]

CONNECT_SECONDS: Final = 10.0
_COMMAND_SECONDS: Final = 10.0
_EVENTS: Final = ("MIGRATION", "MIGRATION_PASS", "STOP", "RESUME")
_CLOSE_SECONDS: Final = 2.0
_ATTEMPTS: Final = 3
_AGAIN_SECONDS: Final = 0.2

# Whatever goes wrong is told by an exception, and need not be told twice.
_library: Final = logging.getLogger("qemu.qmp")
_library.addHandler(logging.NullHandler())
_library.propagate = False


def nobody_listens(error: HostError) -> bool:
    """Whether a connection failed because there is nobody: the QEMU is gone."""
    return isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError))


class Monitor:
    """A session, made by :meth:`connect`.

    :ivar version: of the QEMU, as it names it
    :ivar lost: set when the connection is gone, whoever ended it
    """

    def __init__(self, path: str, client: QMPClient, listener: EventListener) -> None:
        self.path = path
        self.version = _version(client)
        self.lost = asyncio.Event()
        self._closing = asyncio.Event()
        self._client = client
        self._listener = listener
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls, path: str, on_event: Callable[[Mapping[str, Any]], None], *, seconds: float = CONNECT_SECONDS
    ) -> Monitor:
        """A session with the QEMU that listens there.

        :param on_event: called with every event that has to do with a migration
        :raises HostError: nobody listens there even after a few attempts, or it is no QMP
        :raises DeadlineError: nobody answered in time
        """
        try:
            async with asyncio.timeout(seconds):
                attempts = _ATTEMPTS
                while True:
                    try:
                        return await cls._connect(path, on_event)
                    except HostError as error:
                        # A QEMU that starts makes the socket's file a moment before it listens.
                        attempts -= 1
                        if not attempts or not nobody_listens(error):
                            raise
                    await asyncio.sleep(_AGAIN_SECONDS)
        except TimeoutError as error:
            raise DeadlineError(
                f"{path}: no QMP greeting within {seconds:g} s; a QMP socket serves one client at a time, so perhaps "
                "another one is connected"
            ) from error

    @classmethod
    async def _connect(cls, path: str, on_event: Callable[[Mapping[str, Any]], None]) -> Monitor:
        client = QMPClient()
        listener = EventListener(_EVENTS)
        client.register_listener(listener)
        try:
            await client.connect(path)
        except ConnectError as error:
            cause = error.exc
            if isinstance(cause, OSError):
                raise HostError(f"cannot connect to the QMP socket {path}: {cause.strerror or cause}") from cause
            raise HostError(f"{path} is no QMP socket of a QEMU: {_one_line(error)}") from error
        monitor = cls(path, client, listener)
        monitor._listening = asyncio.create_task(monitor._listen(on_event))
        return monitor

    async def close(self) -> None:
        """End the session."""
        self._closing.set()
        if self._listening is not None:
            await self._listening

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, seconds: float = _COMMAND_SECONDS
    ) -> Any:
        """What a command returns.

        :raises HostError: QEMU refused it, or the connection is lost, and the command's fate with it
        :raises DeadlineError: no answer in time
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise HostError(f"{self.path}: {command}: {error}") from error
        except TimeoutError as error:
            raise DeadlineError(f"{self.path}: no answer to {command} within {seconds:g} s") from error
        except (QMPError, OSError) as error:
            raise HostError(f"{self.path}: {command}: the QMP connection is lost") from error

    async def give(self, name: str, end: socket.socket) -> None:
        """Hand over a copy of a socket, under a name.

        :raises HostError: QEMU did not take it
        """
        try:
            self._client.send_fd_scm(end.fileno())
        except (QMPError, OSError) as error:
            raise HostError(f"{self.path}: a socket could not be handed over: {_one_line(error)}") from error
        await self.execute("getfd", {"fdname": name})

    async def _listen(self, on_event: Callable[[Mapping[str, Any]], None]) -> None:
        ends = (asyncio.create_task(self._until_gone()), asyncio.create_task(self._closing.wait()))
        while True:
            event = asyncio.create_task(self._listener.get())
            await asyncio.wait((event, *ends), return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                event.cancel()
                break
            on_event(event.result())
        for end in ends:
            end.cancel()
        for rest in self._listener.clear():
            on_event(rest)
        # Collects what the library's own tasks ended with.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._client.disconnect()
        self.lost.set()

    async def _until_gone(self) -> bool:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        return True


def _version(client: QMPClient) -> str:
    """As query-version gives it; the greeting has it too (docs/interop/qmp-spec.rst)."""
    greeting = client.greeting
    qemu = greeting.QMP.version["qemu"] if greeting is not None else {}
    if not isinstance(qemu, Mapping):
        return ""
    return ".".join(str(qemu.get(part, "?")) for part in ("major", "minor", "micro"))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
