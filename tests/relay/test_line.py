# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes between both ends of a main channel, and the end of every wait."""

from __future__ import annotations

import array
import contextlib
import socket
from collections.abc import Iterator

import pytest

from qmpfilter.errors import DeadlineError, UnsupportedError
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.line import Line
from qmpfilter.relay.session import Phase
from tests.helpers.migration import exactly

SECONDS = 10.0
QUICK = Waits(idle=0.1, answer=0.1, linger=0.1)
#: More than fits the buffers on the way.
MUCH = bytes(range(256)) * (1 << 14)


class Between:
    """A line, and who speaks at its ends."""

    def __init__(self, stack: contextlib.ExitStack, *, tcp: bool) -> None:
        self.phase = Phase.STREAMING
        pairs = [_tcp() if tcp else socket.socketpair() for _ in range(2)]
        (self.source, ours), (theirs, self.destination) = pairs
        for end in (self.source, ours, theirs, self.destination):
            end.settimeout(SECONDS)
            stack.enter_context(end)
        self.line = Line(ours, theirs, QUICK, lambda: self.phase)

    def read(self, end: socket.socket) -> bytes:
        """What comes from an end of the line."""
        buffer = memoryview(bytearray(1 << 20))
        return bytes(buffer[: self.line.read(end, buffer)])

    def forward(self, data: bytes) -> bool:
        """Whether the destination takes it."""
        return self.line.send(self.line.destination, data)


def _tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        return here, listener.accept()[0]


@pytest.fixture(params=["unix", "tcp"])
def between(request: pytest.FixtureRequest) -> Iterator[Between]:
    with contextlib.ExitStack() as stack:
        yield Between(stack, tcp=request.param == "tcp")


def test_both_ways(between: Between) -> None:
    between.source.sendall(b"pages")
    assert between.read(between.line.source) == b"pages"
    assert between.forward(b"edited")
    assert exactly(between.destination, 6) == b"edited"
    between.destination.sendall(b"pong")
    assert between.read(between.line.destination) == b"pong"
    assert between.line.send(between.line.source, b"pong")
    assert exactly(between.source, 4) == b"pong"
    assert between.line.forward == 6


def test_nothing_comes(between: Between) -> None:
    with pytest.raises(DeadlineError, match=r"nothing came from the source for 0\.1 s"):
        between.read(between.line.source)


def stuffed(between: Between) -> None:
    """Nothing more fits into the destination's socket."""
    end = between.line.destination
    waits = end.gettimeout()
    end.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            end.send(MUCH)
    end.settimeout(waits)


def test_a_destination_that_takes_nothing(between: Between) -> None:
    stuffed(between)
    with pytest.raises(DeadlineError, match=r"the destination took nothing for 0\.1 s"):
        between.forward(b"pages")


def test_given_up_meanwhile(between: Between) -> None:
    stuffed(between)
    between.phase = Phase.ENDED
    assert not between.forward(b"pages")
    assert between.read(between.line.source) == b""


def test_a_destination_that_is_gone(between: Between) -> None:
    between.destination.close()
    # TCP tells of it at the second write.
    while between.forward(b"pages"):
        pass
    assert isinstance(between.line.broken, OSError)


def test_descriptors_are_refused() -> None:
    with contextlib.ExitStack() as stack:
        between = Between(stack, tcp=False)
        descriptors = array.array("i", [between.source.fileno()])
        between.source.sendmsg([b"pages"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        with pytest.raises(UnsupportedError, match="file descriptors cannot be relayed"):
            between.read(between.line.source)


def test_the_end(between: Between) -> None:
    between.source.close()
    assert between.read(between.line.source) == b""
