# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream through a program that stands between a source and a destination: how long it takes.

Source and destination are processes that do as little as they can, and so is what is between them. The stream is made
once and lies in memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from qmpfilter.relay.address import parse_address

__all__ = ["PEER", "Link", "Passed", "Stream", "links", "passed", "processor_seconds"]

PEER: Final = "socat -b1048576"
_SECONDS: Final = 60.0
_BUFFER: Final = 1 << 20
_TICK: Final = 0.01
_TIME: Final = struct.Struct("d")


class Stream(NamedTuple):
    """A stream that repeats its middle, such as one part of a guest's RAM, so many times."""

    head: bytes
    middle: bytes
    times: int
    end: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return len(self.head) + len(self.middle) * self.times + len(self.end)

    def pieces(self) -> Iterator[bytes]:
        """The whole."""
        yield self.head
        for _ in range(self.times):
            yield self.middle
        yield self.end


class Link(NamedTuple):
    """Addresses as QEMU writes them: where the source connects, and where the destination listens."""

    kind: str
    here: str
    there: str

    def peer(self) -> list[str]:
        """The peer between both."""
        program, *options = PEER.split()
        return [program, *options, "-u", _socat(self.here, "LISTEN"), _socat(self.there, "CONNECT")]

    def relay(self, *options: str) -> list[str]:
        """`qmpfilter relay` between both."""
        return [*_ours("relay"), self.here, self.there, "--allow-no-return-path", *options]

    def pump(self) -> list[str]:
        """What passes an extra channel on, between both."""
        return [*_ours("pump"), self.here, self.there]


def _ours(what: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench.between", what]


def _socat(address: str, what: str) -> str:
    kind, _, rest = address.partition(":")
    return f"{kind.upper()}-{what}:{rest.rpartition(':')[2] if what == 'LISTEN' else rest}"


class Passed(NamedTuple):
    """What one run took.

    :param seconds: from the source's first byte to the destination's last
    :param cpu: processor seconds of what was between them while bytes passed
    :param said: the last line that it wrote to its standard error
    """

    seconds: float
    cpu: float
    said: str


@contextlib.contextmanager
def links() -> Iterator[list[Callable[[], Link]]]:
    """Makers of links with fresh addresses, one for each kind of socket."""
    with tempfile.TemporaryDirectory(prefix="qmpfilter-bench-") as folder:
        yield [lambda: _unix(Path(folder)), _tcp]


def _unix(folder: Path) -> Link:
    base = tempfile.mkdtemp(dir=folder)
    return Link("unix", f"unix:{base}/here", f"unix:{base}/there")


def _tcp() -> Link:
    return Link("tcp", *(f"tcp:127.0.0.1:{_free_port()}" for _ in range(2)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def passed(link: Link, between: Sequence[str], stream: Stream) -> Passed:
    """Send a stream through a program that listens at ``link.here`` and connects to ``link.there``.

    :param between: its command line; without one the source connects to the destination
    :raises RuntimeError: not all of it came out
    """
    if not between:
        # What does nothing is measured as what does something is.
        link, between = link._replace(here=link.there), ["true"]
    told, tell = os.pipe()
    with parse_address(link.there).listen() as listener:
        sink = os.fork()
        if not sink:
            os._exit(_swallow(listener, stream.size, tell))
    os.close(tell)
    middle = subprocess.Popen(between, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        with _connected(link.here) as source:
            before = processor_seconds(middle.pid)
            began = time.monotonic()
            for piece in stream.pieces():
                source.sendall(piece)
            ended = os.read(told, _TIME.size)
            cpu = processor_seconds(middle.pid) - before
        _, errors = middle.communicate(timeout=_SECONDS)
    finally:
        os.close(told)
        os.kill(sink, signal.SIGKILL)
        os.waitpid(sink, 0)
        middle.kill()
        middle.wait()
    text = errors.decode()
    if not ended or middle.returncode:
        raise RuntimeError(f"{between} ended with {middle.returncode}: {text}")
    return Passed(_TIME.unpack(ended)[0] - began, cpu, text.strip().rpartition("\n")[2])


def _swallow(listener: socket.socket, size: int, tell: int) -> int:
    """Read so many bytes of one connection, tell when they are there, and read to its end."""
    connection, _ = listener.accept()
    buffer = bytearray(_BUFFER)
    while count := connection.recv_into(buffer):
        size -= count
        if not size:
            os.write(tell, _TIME.pack(time.monotonic()))
    return 0


def processor_seconds(pid: int, thread: int | None = None) -> float:
    """User and system time of a process, or of one of its threads, so far (proc(5), /proc/pid/stat: columns 14 and
    15)."""
    place = f"/proc/{pid}" if thread is None else f"/proc/{pid}/task/{thread}"
    columns = Path(f"{place}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(columns[11]) + int(columns[12])) / os.sysconf("SC_CLK_TCK")


def _connected(address: str) -> socket.socket:
    """Connect as soon as somebody listens."""
    kind, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    late = time.monotonic() + _SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        try:
            connection.connect(rest if kind == "unix" else (host, int(port)))
        except OSError:
            connection.close()
            if time.monotonic() > late:
                raise
            time.sleep(_TICK)
        else:
            return connection
