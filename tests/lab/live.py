# SPDX-License-Identifier: GPL-2.0-or-later
"""Live migrations of TCG guests on this machine: real QEMUs, a relay in its own process, a fuse before it."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qmpfilter.wire import cpu
from qmpfilter.wire.events import (
    DeviceSection,
    Event,
    MachineConfiguration,
    RamRecords,
    SectionsEnd,
    VmDescriptionReceived,
)
from qmpfilter.wire.feed import NeedData
from qmpfilter.wire.parser import State, StreamParser

from .guest.build import build_guest
from .hosts import emulator
from .inhost.machine import QEMU, Machine
from .inhost.waiting import listens, wait_until

SECONDS = 60.0
BUFFER = 1 << 20


@contextlib.contextmanager
def qemu_in(directory: Path) -> Iterator[dict[str, str]]:
    """A program of QEMU's usual name that runs the one of the emulator's root directory; environment to find it."""
    root = emulator()
    command, environment = root.command(f"/usr/bin/{QEMU}")
    data = [f"-L {root.path}/usr/share/{name}" for name in ("qemu", "seabios")]
    settings = " ".join(f"{name}={value}" for name, value in environment.items())
    script = directory / QEMU
    script.write_text(f'#!/bin/sh\nexec env {settings} {" ".join(command)} {" ".join(data)} "$@"\n')
    script.chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{directory}:{before}"
    try:
        yield dict(os.environ)
    finally:
        os.environ["PATH"] = before


def machine(
    directory: Path, name: str, *, incoming: bool = False, memory: int = 64, extra: Sequence[str] = ()
) -> Machine:
    """A TCG guest that verifies its registers all the time and writes to a few pages."""
    guest = build_guest()
    (directory / "l1.elf").write_bytes(guest.elf)
    arguments = [
        *("-machine", "pc", "-accel", "tcg", "-cpu", "EPYC,+svm,+npt", "-m", str(memory), "-nodefaults"),
        *("-display", "none", "-kernel", "l1.elf", "-append", "vcpus=1 dirty=64 spin=20000", *extra),
    ]
    return Machine(directory, name, arguments, guest.symbols["contexts"], incoming)


class RelayProcess:
    """`qmpfilter relay` between two sockets of a directory. Use as a context manager.

    :param kind: of the address where it listens
    """

    def __init__(
        self, directory: Path, *options: str, listen: str = "relay", connect: str = "incoming", kind: str = "unix"
    ) -> None:
        self._report = directory / f"{listen}.report"
        self.address = directory / listen
        argv = [sys.executable, "-m", "qmpfilter", "relay", f"{kind}:{self.address}", f"unix:{directory / connect}"]
        self._errors = (directory / f"{listen}.stderr").open("wb+")
        self.process = subprocess.Popen(
            [*argv, "--report", str(self._report), *options],
            stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors,
        )  # fmt: skip
        wait_until(lambda: listens(self.address), SECONDS, "the relay's socket", 0.02)

    def __enter__(self) -> RelayProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(SECONDS)
        self._errors.close()

    def report(self) -> dict[str, Any]:
        """What it wrote when it ended."""
        self.process.wait(SECONDS)
        told: dict[str, Any] = json.loads(self._report.read_text())
        return told


class Point(enum.Enum):
    """Where in a stream a fuse blows: what comes before has been sent on, what follows has not."""

    SETUP = "setup"
    RAM = "RAM"
    TAIL = "first byte of the tail"
    VCPU = "in the middle of a vCPU"
    EOF = "before EOF"
    AFTER = "after EOF"


class Fuse:
    """Passes a migration on until a point in it, then nothing more from the source until told otherwise.

    What comes back is passed on all the time, or with `silent` only until the point. `emptied` is set when the
    whole stream was sent on.
    """

    def __init__(self, directory: Path, onward: Path, point: Point, *, silent: bool = False) -> None:
        self.address = directory / "fuse"
        self._reached = threading.Event()
        self.emptied = threading.Event()
        self._point = point
        self._silent = silent
        self._released = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.address))
        self._listener.listen(1)
        self._onward = onward
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._forward, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break both connections."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        # Not before: what was held would go on.
        self._released.set()

    def release(self) -> None:
        """Go on as if nothing had been."""
        self._released.set()

    def wait_until_reached(self) -> None:
        """The relay stands at the point: it has connected onward, and read all that comes before."""
        assert self._reached.wait(SECONDS)
        self.wait_until_read()

    def wait_until_read(self) -> None:
        """All that was sent on has been read."""
        onward = self._ends[1]
        wait_until(lambda: not _unread(onward), SECONDS, "the relay to read", 0.02)

    def close(self) -> None:
        """End it all."""
        self.cut()
        self._listener.close()
        for thread in self._threads:
            thread.join(SECONDS)
        for end in self._ends:
            end.close()

    def _forward(self) -> None:
        source, _ = self._listener.accept()
        destination = socket.socket(socket.AF_UNIX)
        destination.connect(str(self._onward))
        self._ends += [source, destination]
        back = threading.Thread(target=self._backward, args=(destination, source), daemon=True)
        self._threads.append(back)
        back.start()
        parser = StreamParser()
        with contextlib.suppress(OSError):
            while data := source.recv(BUFFER):
                parser.receive_data(data)
                while not isinstance(event := parser.next_event(), NeedData):
                    self._pass(destination, event, parser.state)
                if parser.state is State.DONE:
                    self.emptied.set()
            destination.shutdown(socket.SHUT_WR)

    def _pass(self, destination: socket.socket, event: Event, state: State) -> None:
        before = self._split(event, state)
        if before is None or self._reached.is_set():
            destination.sendall(event.raw)
            return
        destination.sendall(event.raw[:before])
        self._reached.set()
        self._released.wait()
        destination.sendall(event.raw[before:])

    def _split(self, event: Event, state: State) -> int | None:
        """Bytes of an event that come before the point, None if the point is not in it."""
        size = len(event.raw)
        match self._point:
            case Point.SETUP:
                return size if isinstance(event, MachineConfiguration) else None
            case Point.RAM:
                return size if isinstance(event, RamRecords) and state is State.ITERATE else None
            case Point.TAIL:
                return 1 if isinstance(event, DeviceSection) else None
            case Point.VCPU:
                return size // 2 if isinstance(event, DeviceSection) and event.idstr == cpu.IDSTR else None
            case Point.EOF:
                return 0 if isinstance(event, SectionsEnd) else None
            case Point.AFTER:
                return size if isinstance(event, VmDescriptionReceived) else None

    def _backward(self, destination: socket.socket, source: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := destination.recv(BUFFER):
                if self._silent and self._reached.is_set():
                    self._released.wait()
                source.sendall(data)
            source.shutdown(socket.SHUT_WR)


def _unread(end: socket.socket) -> int:
    """Bytes, with what the kernel needs for them, that the other side has not read (unix(7), SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(end, termios.TIOCOUTQ, struct.pack("i", 0)))[0]  # type: ignore[no-any-return]  # an int


def runs(of: Machine) -> bool:
    """The guest runs there."""
    with contextlib.suppress(OSError, EOFError):
        return bool(of.qmp.command("query-status")["status"] == "running")
    return False


def freeze(of: Machine) -> None:
    """Let it do nothing more for now."""
    os.kill(of.pid, signal.SIGSTOP)


def thaw(of: Machine) -> None:
    """Let it go on."""
    os.kill(of.pid, signal.SIGCONT)
