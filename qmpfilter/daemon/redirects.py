# SPDX-License-Identifier: GPL-2.0-or-later
"""Which sessions have rules of nftables, and until when.

The kernel is told all of it with every change. What a daemon that was killed leaves there times out, and the next
daemon begins with what its running sessions need and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from qmpfilter.daemon.nft import Redirect, apply, rules
from qmpfilter.daemon.sessions import Origin
from qmpfilter.errors import HostError
from qmpfilter.relay.address import Address, TcpAddress, parse_address
from qmpfilter.relay.channel import Channel

__all__ = ["Redirects"]

_log: Final = logging.getLogger(__name__)

_SPARE: Final = 300.0
"""Seconds for which a rule holds beyond the source's deadline; while the session runs it is renewed before that."""
_RENEW: Final = 100.0


@dataclass(slots=True)
class _Held:
    """A session's rule.

    :param uuid: of its domain
    :param seconds: for which it holds
    :param until: when it ends, None while the session runs
    """

    redirect: Redirect
    uuid: str
    seconds: float
    until: float | None = None


class Redirects:
    """The rules of this host's sessions.

    :param run: has a script of nft done
    :param clock: seconds
    """

    def __init__(self, run: Callable[[str], None] = apply, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._clock = clock
        self._book: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._changed = asyncio.Event()
        self._settled = True

    async def adopt(self, origins: Iterable[Origin], source: float) -> None:
        """Begin with what sessions of an earlier daemon need: what else it left is removed.

        :param source: seconds for which sources are waited for
        """
        for origin in origins:
            with contextlib.suppress(HostError):
                where = parse_address(origin.listen)
                if origin.redirected and isinstance(where, TcpAddress):
                    self._hold(origin.session, origin.uuid, Redirect(where, origin.redirected), source)
        await self._settle()

    @contextlib.asynccontextmanager
    async def leading(self, session: str, uuid: str, redirect: Redirect | None, source: float) -> AsyncIterator[None]:
        """With a session's rule, which stays unless what is done with it fails.

        :param redirect: None where it needs none
        :param source: seconds for which its source is waited for
        :raises HostError: it cannot be set
        """
        if redirect is None:
            yield
            return
        self._hold(session, uuid, redirect, source)
        try:
            await asyncio.to_thread(self._apply)
            yield
        except BaseException:
            self._book.pop(session, None)
            # Also where it could not be set: nft that was ended may have done it.
            await self._settle()
            raise

    async def vacate(self, places: Collection[Address]) -> None:
        """Another QEMU listens there now: no rule of the one before is for it."""
        tcp = [place for place in places if isinstance(place, TcpAddress)]
        if self._drop(lambda held: any(held.redirect.overlaps(place) for place in tcp)):
            await self._settle()

    def forget(self, uuid: str) -> None:
        """A domain's QEMU is gone."""
        if self._drop(lambda held: held.uuid == uuid):
            self._changed.set()

    def ended(self, report: Mapping[str, Any]) -> None:
        """A session has ended. Where no source ever came its QEMU still waits for one, and must not be reached past
        the filter: it is refused until QEMU is gone, or the rule ends."""
        name = str(report.get("session", ""))
        if (held := self._book.get(name)) is None:
            return
        if Channel.MAIN.value in report.get("channels", ()):
            del self._book[name]
            self._changed.set()
        else:
            held.until = self._clock() + held.seconds

    async def keep(self) -> None:
        """Remove what has ended, and renew what holds; for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RENEW):
                    await self._changed.wait()
            if self._drop(self._is_over) or self._book or self._changed.is_set() or not self._settled:
                self._changed.clear()
                await self._settle()

    async def close(self) -> None:
        """At the daemon's end: only what running sessions need stays, for its time."""
        if self._drop(lambda held: held.until is not None) or self._changed.is_set() or not self._settled:
            await self._settle()

    def _hold(self, session: str, uuid: str, redirect: Redirect, source: float) -> None:
        self._book[session] = _Held(redirect, uuid, source + _SPARE)

    def _is_over(self, held: _Held) -> bool:
        return held.until is not None and held.until <= self._clock()

    def _drop(self, unwanted: Callable[[_Held], bool]) -> bool:
        names = [name for name, held in self._book.items() if unwanted(held)]
        for name in names:
            del self._book[name]
        return bool(names)

    async def _settle(self) -> None:
        try:
            await asyncio.to_thread(self._apply)
        except HostError as error:
            _log.warning("rules of nftables could not be changed; those that are there end by themselves: %s", error)

    def _apply(self) -> None:
        # What was begun last is told last, and all that is known by then.
        with self._lock:
            now = self._clock()
            left = {
                held.redirect: held.seconds if held.until is None else held.until - now
                for held in tuple(self._book.values())
            }
            self._settled = False
            self._run(rules({redirect: seconds for redirect, seconds in left.items() if seconds > 0}))
            self._settled = True
