# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU that a guest comes to: one that was started with ``-incoming defer`` and whose QMP socket is at hand."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from qmpfilter.qmp.endpoint import Endpoint
from qmpfilter.qmp.refusals import check_destination
from qmpfilter.relay.address import QMP, Listening, parse_listening

__all__ = ["Destination", "parse_target"]


class Destination(Endpoint):
    """The destination of a migration."""

    async def check(self) -> None:
        """Whether it waits to be told where a migration comes from. Nothing is changed.

        :raises PolicyError: no, and why
        :raises HostError: it does not answer
        """
        parameters = await self.read_settings()
        check_destination(self.path, self.guest, self.info, self.capabilities, parameters)

    async def prepare(self, source: Mapping[str, bool]) -> None:
        """Turn on the capabilities that are on at the source; those that matter only here stay as they are.

        :raises PolicyError: it does not know one that the source uses
        :raises HostError: QEMU refused
        """
        await self.set_capabilities({name: True for name, on in source.items() if on})

    async def open(self) -> socket.socket:
        """Have it wait for the migration, and return the other end of what it waits on.

        :raises HostError: QEMU would not
        """
        ours, theirs = socket.socketpair()
        try:
            await self.begin("migrate-incoming", theirs)
        except BaseException:
            ours.close()
            raise
        return ours


def parse_target(text: str) -> Destination | Listening:
    """Where a source is to migrate: ``qmp:`` and the QMP socket of a destination, or an address.

    :raises HostError: it is neither
    """
    return Destination(text.removeprefix(QMP)) if text.startswith(QMP) else parse_listening(text)
