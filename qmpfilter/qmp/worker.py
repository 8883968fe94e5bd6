# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m qmpfilter.qmp.worker FD``: the process that :mod:`qmpfilter.relay.worker` tells of, QMP or not.

An order without sockets is carried out by telling the source at its QMP socket to migrate. With sockets and a QMP
socket the source is only followed, and asked for guest memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import Any

from qmpfilter.errors import BugError, QmpfilterError
from qmpfilter.filter.gate import Gate, Memory
from qmpfilter.qmp.companion import Companion
from qmpfilter.qmp.destination import parse_target
from qmpfilter.qmp.migration import Migration
from qmpfilter.qmp.source import Source
from qmpfilter.relay.order import Order
from qmpfilter.relay.relay import Relay
from qmpfilter.relay.session import STOPPED
from qmpfilter.relay.worker import DaemonLine, Worker, serve


class _Following(Worker):
    """Somebody else has the source migrate."""

    def __init__(self, order: Order, line: DaemonLine) -> None:
        self._companion = Companion(order.qmp)
        super().__init__(order, line, self._companion.read_pages if order.read_vmcb12 else None)

    def carry_out(self, sockets: list[socket.socket]) -> None:
        with self._companion:
            super().carry_out(sockets)

    def who(self) -> dict[str, Any]:
        return _who(self._companion.source)

    def told(self) -> dict[str, Any]:
        return {**super().told(), "source": self._companion.source.as_json()}


class _TakingOver(Worker):
    """The source is told to migrate."""

    def _engine(self, memory: Memory | None) -> tuple[Relay, Gate]:
        order = self.order
        self._loop = asyncio.new_event_loop()
        self._migration = Migration(
            Source(order.qmp, leave_return_path=order.policy.without_return_path),
            parse_target(order.destination),
            order.policy,
            order.waits,
            is_off=order.kill_switch.exists,
            read_memory=order.read_vmcb12,
            make_gate=self.make_gate,
            pairing=order.pairing,
        )
        return self._migration.relay, self._migration.gate

    def carry_out(self, sockets: list[socket.socket]) -> None:
        # What keeps it from beginning is the session's reason by now.
        with (
            contextlib.suppress(QmpfilterError, asyncio.CancelledError),
            asyncio.Runner(loop_factory=lambda: self._loop) as runner,
        ):
            runner.run(self._migration.run())

    def who(self) -> dict[str, Any]:
        return _who(self._migration.source)

    def told(self) -> dict[str, Any]:
        return self._migration.report()

    def interrupt(self) -> None:
        self.stop()

    def stop(self, reason: str = STOPPED) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._migration.interrupt, reason)


def _who(source: Source) -> dict[str, Any]:
    return {"name": source.name, "uuid": source.uuid}


def _choose(order: Order, line: DaemonLine, has_sockets: bool) -> Worker:
    if not has_sockets:
        if not order.qmp:
            raise BugError("an order with neither sockets nor a QMP socket")
        return _TakingOver(order, line)
    return _Following(order, line) if order.qmp else Worker(order, line)


if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1]), _choose))
