# SPDX-License-Identifier: GPL-2.0-or-later
"""A source and a destination that are made up, and a stream that was recorded."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any, Final, Self

from qmpfilter.wire.framing import BE32, COMMAND_HEADER
from tests.helpers.fixtures import fixtures

__all__ = ["PART", "SHUT_OK", "STREAM", "Ends", "asked", "everything", "exactly", "sending"]

SECONDS = 20.0
SHUT_OK: Final = COMMAND_HEADER.pack(1, 4) + BE32.pack(0)
STREAM: Final = next(fixture for fixture in fixtures() if fixture.name == "mid-return-path").file("stream")
PART: Final = 100_000
"""So much of the stream is RAM still."""


class Ends:
    """Both ends of a migration. Use as a context manager.

    :param incoming: where the destination waits; None for a port of this machine
    """

    def __init__(self, incoming: Path | None) -> None:
        if incoming is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.connect = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self.connect = f"unix:{incoming}"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(incoming))
            self._listener.listen()
        self._listener.settimeout(SECONDS)
        self._open = [self._listener]
        self._sending: threading.Thread | None = None
        self.arrived = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._open:
            end.close()
        if self._sending is not None:
            self._sending.join(SECONDS)

    def dial(self, port: str) -> None:
        """The source connects to an address that a daemon gave."""
        host, _, number = port.removeprefix("tcp:").rpartition(":")
        self.source = socket.create_connection((host, int(number)), SECONDS)
        self._open.append(self.source)

    def send(self, data: bytes) -> None:
        """From the source, which may have to wait until the destination reads."""
        if self._sending is not None:
            self._sending.join(SECONDS)
        self._sending = sending(self.source, data)

    def accept(self) -> None:
        """The destination is connected to."""
        self.destination = self._listener.accept()[0]
        self.destination.settimeout(SECONDS)
        self._open.append(self.destination)

    def arrive(self, least: int) -> None:
        """Wait until so many bytes of the stream, or more, have come to the destination."""
        while self.arrived < least and (part := self.destination.recv(1 << 20)):
            self.arrived += len(part)

    def finish(self) -> bytes:
        """The destination takes the guest: what the source heard."""
        self.destination.sendall(SHUT_OK)
        self.destination.close()
        heard = everything(self.source)
        self.source.close()
        return heard


def sending(end: socket.socket, data: bytes) -> threading.Thread:
    """Send while others read, until all is sent or nobody reads any more."""

    def send() -> None:
        with contextlib.suppress(OSError):
            end.sendall(data)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def exactly(end: socket.socket, count: int) -> bytes:
    """So many bytes, or less if that is all there is."""
    got = b""
    while len(got) < count and (part := end.recv(count - len(got))):
        got += part
    return got


def everything(end: socket.socket) -> bytes:
    """All that still comes."""
    parts = []
    try:
        while part := end.recv(1 << 20):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def asked(ends: Ends, **more: Any) -> dict[str, Any]:
    """What a daemon is asked for."""
    return {"listen": "tcp:127.0.0.1:0", "connect": ends.connect, **more}
