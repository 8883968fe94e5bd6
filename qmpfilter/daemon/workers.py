# SPDX-License-Identifier: GPL-2.0-or-later
"""Worker processes: started here or by an earlier daemon, and outliving any of them.

Not asyncio's subprocesses: those are killed when the object that stands for them goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from qmpfilter.errors import HostError
from qmpfilter.relay.order import Order

__all__ = ["Worker", "start_of"]

_MODULE: Final = "qmpfilter.qmp.worker"
_LONGEST_LINE: Final = 4 << 20
_ORDER_SECONDS: Final = 30.0
# proc_pid_stat(5): starttime is the 22nd field, and the second is a name in brackets that may hold anything.
_START_FIELD: Final = 22 - 3


def start_of(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None if there is none of that number that still runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else int(fields[_START_FIELD])
    except (OSError, ValueError, IndexError):
        return None


class Worker:
    """A worker process. Closing this leaves it running.

    :param pid: its number
    :param child: if this daemon started it
    :param line: to it, if there is one
    :raises OSError: it has ended
    """

    def __init__(
        self, pid: int, child: subprocess.Popen[bytes] | None = None, line: socket.socket | None = None
    ) -> None:
        self.pid = pid
        self._child = child
        self._socket = line
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._handle = os.pidfd_open(pid)

    @classmethod
    async def start(cls, log: Path) -> Self:
        """A new one, which waits for its order.

        :param log: where it may write what is meant for a person; never to a terminal or a pipe, which may block
        :raises HostError: it cannot be started
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                child = await asyncio.to_thread(_spawn, theirs, log)
            return cls(child.pid, child, ours)
        except OSError as error:
            ours.close()
            raise HostError(f"no worker could be started: {error.strerror or error}") from error

    @classmethod
    def adopt(cls, pid: int, start: int) -> Self | None:
        """One that an earlier daemon started; None if it has ended."""
        try:
            worker = cls(pid)
        except OSError:
            return None
        if start_of(pid) != start:
            worker.close()
            return None
        return worker

    async def give(self, order: Order, sockets: Sequence[socket.socket]) -> None:
        """Hand over what it is to do, and the sockets, which the caller then closes.

        :raises HostError: it has ended, or does not take it
        """
        if self._socket is None:
            raise HostError("the worker has its order already")
        text = order.to_json().encode() + b"\n"
        try:
            async with asyncio.timeout(_ORDER_SECONDS):
                # Into an empty buffer a byte goes at once.
                if sockets:
                    socket.send_fds(self._socket, [text[:1]], [one.fileno() for one in sockets])
                else:
                    self._socket.send(text[:1])
                self._reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=_LONGEST_LINE)
                self._writer.write(text[1:])
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            raise HostError(f"the worker did not take its order: {error}") from error

    async def listen(self, hear: Callable[[Mapping[str, Any]], None]) -> None:
        """Pass on what it says until it says no more."""
        if self._reader is None:
            return
        with contextlib.suppress(OSError, ValueError):
            while line := await self._reader.readline():
                event = json.loads(line)
                if isinstance(event, dict):
                    hear(event)

    async def ended(self) -> str:
        """Wait for its end: how that came, in words."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.add_reader(self._handle, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(self._handle)
        status = None if self._child is None else self._child.wait()
        if status is None:
            return "ended without a report"
        return f"was killed by {_signal(-status)}" if status < 0 else f"ended with status {status} without a report"

    def stop(self, reason: str) -> None:
        """Ask it to end its migration as far as that is still possible."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps({"op": "stop", "reason": reason}).encode() + b"\n")
        else:
            # What was sent to a process that has ended reaches no other of the same number.
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._handle, signal.SIGTERM)

    def kill(self) -> None:
        """End one that did not begin its work."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def hang_up(self) -> None:
        """It says no more."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Forget it; it goes on."""
        self.hang_up()
        # What was made a stream is closed with that.
        if self._socket is not None and self._reader is None:
            self._socket.close()
        os.close(self._handle)


def _spawn(line: socket.socket, log: Path) -> subprocess.Popen[bytes]:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE, str(line.fileno())],
            stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor,
            pass_fds=[line.fileno()], start_new_session=True,
            # What this process imports from is not known to another: an installed program may have said it itself.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
    finally:
        os.close(descriptor)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
