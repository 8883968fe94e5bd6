# SPDX-License-Identifier: GPL-2.0-or-later
"""One of the two QEMUs of a migration: connected to, followed, asked at the end; what it said is kept for the report.

Once a migration goes on, nothing that fails here stops it: a connection that is lost is sought again, and what could
not be learnt is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Any, Final

from qmpfilter.errors import DeadlineError, HostError, PolicyError
from qmpfilter.qmp.info import MigrationInfo, Moment
from qmpfilter.qmp.monitor import CONNECT_SECONDS, Monitor, nobody_listens

__all__ = ["POLL_SECONDS", "Endpoint"]

_SETTLE_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.5
"""Between two questions while a migration goes on."""

_SETTLE_POLL_SECONDS: Final = 0.05
_RECONNECT_SECONDS: Final = 2.0
_MOST_PAUSE_SECONDS: Final = 8.0
# Of a migration that hops between its states for days.
_MOST_MOMENTS: Final = 200
# Memory that changes as fast as it is sent takes passes without end, and the end is to be told too.
_MOST_PASSES: Final = 100


class Endpoint:
    """One QEMU.

    :param path: of its QMP socket
    :ivar version: empty until it was connected to
    :ivar name: the guest's, where it was given one
    :ivar uuid: the guest's
    :ivar info: the last that query-migrate said
    :ivar guest: the last that query-status said: a RunState, empty if it was not asked
    :ivar gone: nobody listened at its QMP socket when it was last tried
    :ivar moments: its events, in their order
    :ivar problems: what could not be done or learnt, one sentence each
    :ivar capabilities: as the operator set them
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.version = ""
        self.name = ""
        self.uuid = ""
        self.info = MigrationInfo()
        self.guest = ""
        self.moments: list[Moment] = []
        self.problems: list[str] = []
        self.capabilities: dict[str, bool] = {}
        self.gone = False
        self._changed: dict[str, bool] = {}
        self._monitor: Monitor | None = None

    @property
    def runs(self) -> bool:
        """It said last that its guest runs."""
        return self.guest == "running"

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "qmp": self.path,
            "qemu": self.version,
            "name": self.name,
            "uuid": self.uuid,
            "guest": self.guest,
            "gone": self.gone,
            "migration": self.info.as_json(),
            "events": [moment.as_json() for moment in self.moments],
            "problems": self.problems,
        }

    # --- before the migration ------------------------------------------------------------------

    async def connect(self, *, seconds: float = CONNECT_SECONDS) -> None:
        """Connect.

        :raises HostError: that failed, or took too long
        """
        self._monitor = await Monitor.connect(self.path, self._happened, seconds=seconds)
        self.version = self._monitor.version
        self.gone = False

    async def close(self) -> None:
        """End the connection."""
        if self._monitor is not None:
            await self._monitor.close()
            self._monitor = None

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """:raises HostError: it failed, or there is no connection"""
        if self._monitor is None:
            raise HostError(f"{self.path}: {command}: the QMP connection is lost")
        return await self._monitor.execute(command, arguments)

    async def ask_who(self) -> None:
        """:raises HostError: it does not answer"""
        self.name = str((await self.execute("query-name")).get("name", ""))
        self.uuid = str((await self.execute("query-uuid")).get("UUID", ""))

    async def read_settings(self) -> dict[str, Any]:
        """Ask for everything there is; returns the migration parameters.

        :raises HostError: it does not answer
        """
        await self.ask_who()
        self.info = MigrationInfo.of(await self.execute("query-migrate"))
        await self.ask_guest()
        told = await self.execute("query-migrate-capabilities")
        self.capabilities = {str(one["capability"]): bool(one["state"]) for one in told}
        parameters: dict[str, Any] = await self.execute("query-migrate-parameters")
        return parameters

    async def set_capabilities(self, wanted: Mapping[str, bool]) -> None:
        """Change capabilities that are set otherwise, and remember how they were.

        :raises PolicyError: this QEMU does not have one of them
        :raises HostError: it refused
        """
        for name in wanted:
            if name not in self.capabilities:
                raise PolicyError(f"{self.path}: QEMU {self.version} has no migration capability {name}")
        change = {name: state for name, state in wanted.items() if self.capabilities[name] != state}
        if change:
            self._changed = {name: self.capabilities[name] for name in change}
            await self._set(change)

    async def restore(self) -> None:
        """Undo :meth:`set_capabilities`, as far as that is possible; until it is, it may be tried again."""
        if not self._changed or self.gone:
            return
        try:
            await self._set(self._changed)
            self._changed = {}
        except HostError as error:
            names = ", ".join(sorted(self._changed))
            self.problems.append(f"the migration capabilities {names} stay changed: {error}")

    async def begin(self, command: str, end: socket.socket) -> None:
        """Hand over a socket, close it here, and have QEMU migrate on it.

        :param command: migrate or migrate-incoming
        :raises HostError: QEMU would not
        """
        name = f"qmpfilter-{os.getpid()}"
        with end:
            if self._monitor is None:
                raise HostError(f"{self.path}: the QMP connection is lost")
            await self._monitor.give(name, end)
        try:
            await self.execute(command, {"uri": f"fd:{name}"})
        except HostError:
            with contextlib.suppress(HostError):
                await self.execute("closefd", {"fdname": name})
            raise

    # --- during the migration ------------------------------------------------------------------

    async def follow(self, over: asyncio.Event) -> None:
        """Keep :attr:`info` fresh until told that it is over; a lost connection is sought again."""
        pause = POLL_SECONDS
        while not over.is_set():
            try:
                await self.update()
                pause = POLL_SECONDS
            except HostError:
                pause = min(2 * pause, _MOST_PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await over.wait()

    async def update(self) -> None:
        """Ask how the migration is, over a new connection if need be.

        :raises HostError: nothing was learnt
        """
        if self._monitor is not None and self._monitor.lost.is_set():
            await self.close()
        try:
            if self._monitor is None:
                await self.connect(seconds=_RECONNECT_SECONDS)
                self.problems.append("the QMP connection was lost and made again: events in between are not known")
            self.info = MigrationInfo.of(await self.execute("query-migrate"))
        except HostError as error:
            self.gone = nobody_listens(error)
            raise

    # --- after the migration -------------------------------------------------------------------

    async def settle(self) -> None:
        """Wait for the migration's end as this QEMU sees it, and ask who runs the guest."""
        error: HostError | None = None
        # What was true before is not what is asked for.
        self.guest = ""
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                while not self.gone:
                    try:
                        await self.update()
                        await self.ask_guest()
                        error = None
                        if self.info.over or not self.info.begun:
                            return
                    except HostError as failed:
                        error = failed
                    await asyncio.sleep(_SETTLE_POLL_SECONDS)
        except TimeoutError:
            last = self.info.status or "none"
            late = f"{self.path}: nothing of the migration's end within {_SETTLE_SECONDS:g} s; last it was {last}"
            error = error or DeadlineError(late)
        if self.gone:
            self.problems.append("the QMP connection was lost: this QEMU has ended, or closed its QMP socket")
        elif error is not None:
            self.problems.append(str(error))

    async def ask_guest(self) -> None:
        """:raises HostError: no answer"""
        told = await self.execute("query-status")
        self.guest = str(told.get("status", ""))

    def _happened(self, event: Mapping[str, Any]) -> None:
        moment = Moment.of(event)
        if len(self.moments) < (_MOST_PASSES if moment.ram_pass else _MOST_MOMENTS):
            self.moments.append(moment)

    async def _set(self, capabilities: Mapping[str, bool]) -> None:
        await self.execute(
            "migrate-set-capabilities",
            {"capabilities": [{"capability": name, "state": state} for name, state in capabilities.items()]},
        )
