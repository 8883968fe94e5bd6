# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that somebody else has migrate, followed over QMP while a relay passes its stream on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Final, Self

from qmpfilter.errors import HostError
from qmpfilter.qmp.migration import MEMORY_SECONDS, wait_in
from qmpfilter.qmp.source import Source

__all__ = ["Companion"]

_LAST_SECONDS: Final = 30.0


class Companion:
    """Follows a source in a thread of its own. A context manager: at its end the source was asked what became of it.

    Nothing that fails here stops the migration, or is waited for before it. A QMP socket serves one client at a time,
    so it has to be another than that of who has the source migrate.

    :ivar source: what it said so far
    """

    def __init__(self, path: str) -> None:
        self.source = Source(path)
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="companion", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(_LAST_SECONDS)

    def read_pages(self, addresses: Sequence[int]) -> Mapping[int, bytes]:
        """Pages of the guest's memory while it stands still; from any thread.

        :raises HostError: they cannot be read, or not in time
        """
        return wait_in(self._loop, self.source.read_pages(addresses), MEMORY_SECONDS, "reading guest memory")

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._follow())

    async def _follow(self) -> None:
        try:
            await self.source.connect()
            await self.source.ask_who()
        except HostError as error:
            self.source.problems.append(str(error))
        try:
            await self.source.follow(self._over)
            await self.source.settle()
        finally:
            await self.source.close()
