# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay that records a migration: every connection of a source, each direction into a file of its own."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from .waiting import Deadline

QEVM_MAGIC = b"QEVM"
MULTIFD_MAGIC = bytes.fromhex("11223344")
MULTIFD_ID_OFFSET = 24
CHUNK = 1 << 16


@dataclass(frozen=True)
class Channel:
    """One recorded connection: what the source sent, and what came back."""

    forward: Path
    backward: Path

    def role(self) -> str:
        """``stream``, ``multifd0`` and so on, or ``preempt`` for a channel that does not say what it is."""
        with self.forward.open("rb") as recorded:
            head = recorded.read(MULTIFD_ID_OFFSET + 1)
        if head.startswith(QEVM_MAGIC):
            return "stream"
        if head.startswith(MULTIFD_MAGIC):
            return f"multifd{head[MULTIFD_ID_OFFSET]}"
        return "preempt"


class RecordingRelay:
    """Listens on a UNIX socket and passes each connection on, in the order they come.

    Without a destination it swallows: a source that expects no return path completes all the same.
    """

    def __init__(self, listen: Path, destination: Path | None, directory: Path) -> None:
        self.channels: list[Channel] = []
        self._destination = destination
        self._directory = directory
        self._pumps: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(listen))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def finish(self, seconds: float) -> list[Channel]:
        """The channels, once all of them have ended in both directions; raises TimeoutError if they do not."""
        deadline = Deadline(seconds, "end of the recorded channels")
        for pump in self._pumps:
            pump.join(deadline.remaining())
            deadline.remaining()
        self._listener.close()
        return self.channels

    def _accept(self) -> None:
        while True:
            try:
                source, _ = self._listener.accept()
            except OSError:
                return
            number = len(self.channels)
            channel = Channel(self._directory / f"{number}.forward", self._directory / f"{number}.backward")
            channel.forward.touch()
            channel.backward.touch()
            onward: socket.socket | None = None
            if self._destination is not None:
                onward = socket.socket(socket.AF_UNIX)
                onward.connect(str(self._destination))
                self._start(onward, source, channel.backward)
            self._start(source, onward, channel.forward)
            self.channels.append(channel)

    def _start(self, reader: socket.socket, writer: socket.socket | None, record: Path) -> None:
        pump = threading.Thread(target=_pump, args=(reader, writer, record), daemon=True)
        self._pumps.append(pump)
        pump.start()


def _pump(reader: socket.socket, writer: socket.socket | None, record: Path) -> None:
    with record.open("wb") as file:
        while True:
            try:
                part = reader.recv(CHUNK)
                if part and writer is not None:
                    writer.sendall(part)
            except OSError:
                part = b""
            file.write(part)
            if not part:
                break
    if writer is not None:
        try:
            writer.shutdown(socket.SHUT_WR)
        except OSError:
            # The peer was faster; its end is all that this would have told.
            return
