# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP socket before a QMP socket, whose connection can be broken without ending QEMU."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

CHUNK = 1 << 16
SECONDS = 30.0


class QmpProxy:
    """Passes one client after the other on, file descriptors too. Use as a context manager."""

    def __init__(self, path: Path, onward: Path) -> None:
        self.path = path
        self._onward = onward
        self._ends: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> QmpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._thread.join(SECONDS)
        self._listener.close()

    def cut(self) -> None:
        """Break the connection; the next one is served."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Break the connection, and listen no more."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as qemu:
                qemu.connect(str(self._onward))
                self._ends = [client, qemu]
                back = threading.Thread(target=_pass, args=(qemu, client), daemon=True)
                back.start()
                _pass(client, qemu)
                back.join(SECONDS)


def _pass(source: socket.socket, destination: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, descriptors, _, _ = socket.recv_fds(source, CHUNK, 4)
            if not data:
                break
            socket.send_fds(destination, [data], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
    for end in (source, destination):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
