# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU that a guest leaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Final

from qmpfilter.errors import HostError
from qmpfilter.qmp.endpoint import Endpoint
from qmpfilter.qmp.pages import command_for, parse_page
from qmpfilter.qmp.refusals import check_source

__all__ = ["Source"]

_RUNNING_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05


class Source(Endpoint):
    """The source of a migration.

    :param leave_return_path: the capability return-path stays as the operator set it
    :ivar before: the guest's RunState before the migration
    """

    def __init__(self, path: str, *, leave_return_path: bool = False) -> None:
        super().__init__(path)
        self.before = ""
        self._leave_return_path = leave_return_path

    async def check(self) -> None:
        """Whether its migration can be handed over. Nothing is changed.

        :raises PolicyError: no, and why
        :raises HostError: it does not answer
        """
        parameters = await self.read_settings()
        self.before = self.guest
        check_source(self.path, self.guest, self.info, self.capabilities, parameters)

    def wanted(self) -> dict[str, bool]:
        """Its capabilities during the migration."""
        return self.capabilities | {"events": True} | ({} if self._leave_return_path else {"return-path": True})

    async def start(self, end: socket.socket) -> None:
        """Begin the migration on a socket, which is closed here.

        :raises HostError: QEMU would not
        """
        await self.set_capabilities(self.wanted())
        await self.begin("migrate", end)

    async def cancel(self) -> None:
        """End the migration. Never after its commit point: the guest might go on at both ends.

        :raises HostError: QEMU did not take it
        """
        await self.execute("migrate_cancel")

    async def read_pages(self, addresses: Sequence[int]) -> dict[int, bytes]:
        """Pages of the guest's memory, all or none, while it stands still.

        :raises HostError: it runs, or one of them cannot be read
        """
        await self._check_stopped()
        pages = {}
        for address in addresses:
            text = await self.execute("human-monitor-command", {"command-line": command_for(address)})
            pages[address] = parse_page(address, str(text))
        await self._check_stopped()
        return pages

    async def settle_back(self) -> None:
        """The migration came to nothing: wait until the guest is as it was before."""
        await self.settle()
        try:
            async with asyncio.timeout(_RUNNING_SECONDS):
                while not self.gone and self.guest != self.before:
                    await asyncio.sleep(_POLL_SECONDS)
                    await self.ask_guest()
        except TimeoutError:
            self.problems.append(f"the guest was {self.before} before the migration and now is {self.guest}")
        except HostError as error:
            self.problems.append(str(error))

    async def _check_stopped(self) -> None:
        await self.ask_guest()
        if self.runs:
            raise HostError(f"{self.path}: the guest runs, so its memory cannot be relied on")
