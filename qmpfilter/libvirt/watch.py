# SPDX-License-Identifier: GPL-2.0-or-later
"""Hears of the domains of a libvirt, and connects again when that is away.

libvirt calls back in the thread of :mod:`qmpfilter.libvirt.loop`; what it tells is handed over to the loop of who
watches. Nothing of this is needed by a migration.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from qmpfilter.errors import HostError
from qmpfilter.libvirt import events
from qmpfilter.libvirt.connection import CALL_SECONDS, Connection, binding, within
from qmpfilter.libvirt.events import Happening

__all__ = ["watch"]

_log: Final = logging.getLogger(__name__)

_FIRST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 60.0
_ALIVE_SECONDS: Final = 30.0
_LIFECYCLE: Final = 0
_ITERATION: Final = 20
_JOB_COMPLETED: Final = 21
_MIGRATION: Final = "MIGRATION"


async def watch(uri: str, heard: Callable[[Happening], None]) -> None:
    """Until it is cancelled, or there is no libvirt-python. That libvirt is away is said once, and that it is back.

    :param heard: is told of each event, in the loop that runs this
    """
    try:
        binding("libvirt_qemu")
    except HostError as error:
        _log.error("events of libvirt are not heard: %s", error)
        return
    wait, known_away = _FIRST_WAIT, False
    while True:
        try:
            connection = await Connection.open(uri)
            try:
                gone = await _subscribe(connection, heard)
                _log.info("events of %s are heard", uri)
                wait, known_away = _FIRST_WAIT, False
                await _until_gone(connection, gone)
            finally:
                await connection.close()
            raise HostError("the connection ended")
        except HostError as error:
            if not known_away:
                _log.warning("events of %s are not heard, and it is tried again: %s", uri, error)
            known_away = True
        await asyncio.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


async def _subscribe(connection: Connection, heard: Callable[[Happening], None]) -> asyncio.Event:
    """What is returned is set when the connection has ended.

    :raises HostError: libvirt says no
    """
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    raw, qemu = connection.raw, binding("libvirt_qemu")

    def tell(make: Callable[..., Happening], domain: Any, *what: Any) -> None:
        happening = make(domain.name(), domain.UUIDString(), *what)
        loop.call_soon_threadsafe(heard, happening)

    def on_lifecycle(_conn: object, domain: Any, event: int, detail: int, _opaque: object) -> None:
        tell(events.lifecycle, domain, event, detail)

    def on_iteration(_conn: object, domain: Any, number: int, _opaque: object) -> None:
        tell(events.iteration, domain, number)

    def on_job(_conn: object, domain: Any, stats: Mapping[str, Any], _opaque: object) -> None:
        tell(events.job_completed, domain, stats)

    def on_migration(
        _conn: object, domain: Any, _event: str, seconds: int, micros: int, details: str | None, _opaque: object
    ) -> None:
        tell(events.qemu_migration, domain, seconds, micros, details)

    def on_close(_conn: object, _reason: int, _opaque: object) -> None:
        loop.call_soon_threadsafe(gone.set)

    def register() -> None:
        raw.registerCloseCallback(on_close, None)
        for number, call in ((_LIFECYCLE, on_lifecycle), (_ITERATION, on_iteration), (_JOB_COMPLETED, on_job)):
            raw.domainEventRegisterAny(None, number, call, None)
        qemu.qemuMonitorEventRegister(raw, None, _MIGRATION, on_migration, None, 0)

    await within(CALL_SECONDS, "asking for events", register)
    return gone


async def _until_gone(connection: Connection, gone: asyncio.Event) -> None:
    """:raises HostError: it does not answer any more"""
    while not gone.is_set():
        try:
            async with asyncio.timeout(_ALIVE_SECONDS):
                await gone.wait()
        except TimeoutError:
            if not await within(CALL_SECONDS, "asking whether it lives", connection.raw.isAlive):
                return
