# SPDX-License-Identifier: GPL-2.0-or-later
"""The event loop that libvirt needs to keep connections alive and to tell of events: libvirtaio in a thread.

libvirt uses its loop from whichever thread makes a call, and asyncio's may be used from its own only. So what
libvirtaio wants of the loop is handed over to it, and it serves nobody but libvirt.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final

__all__ = ["EventThread"]

_log: Final = logging.getLogger(__name__)


class EventThread:
    """One for the process: libvirt takes no second loop."""

    _lock: ClassVar = threading.Lock()
    _started: ClassVar[bool] = False

    @classmethod
    def start_once(cls, binding: Callable[[str], Any]) -> None:
        """Before the first connection is opened.

        :param binding: gives a module of libvirt-python by its name
        :raises HostError: there is none
        """
        with cls._lock:
            if cls._started:
                return
            loop = asyncio.new_event_loop()
            # A connection that ends at once has closed its socket before its turn comes here.
            loop.set_exception_handler(lambda _, what: _log.debug("%s", what))
            binding("libvirtaio").virEventAsyncIOImpl(_FromAnyThread(loop)).register()
            threading.Thread(target=loop.run_forever, name="libvirt events", daemon=True).start()
            cls._started = True


class _FromAnyThread:
    """What libvirtaio uses of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def add_reader(self, number: int, call: Callable[..., object], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.add_reader, number, call, *arguments)

    def add_writer(self, number: int, call: Callable[..., object], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.add_writer, number, call, *arguments)

    def remove_reader(self, number: int) -> None:
        self._loop.call_soon_threadsafe(self._loop.remove_reader, number)

    def remove_writer(self, number: int) -> None:
        self._loop.call_soon_threadsafe(self._loop.remove_writer, number)

    def create_task(self, work: Coroutine[Any, Any, object]) -> object:
        """What is returned can be cancelled, and nothing else is asked of it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)
