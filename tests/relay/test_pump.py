# SPDX-License-Identifier: GPL-2.0-or-later
"""Channels that are spliced: bytes, half-closes, and cuts arrive at the other side."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from qmpfilter.relay.pump import Pump

SECONDS = 10.0


class Joined:
    """A pump between two socket pairs, and what it reported."""

    def __init__(self) -> None:
        self.source, left = socket.socketpair()
        right, self.destination = socket.socketpair()
        for end in (self.source, self.destination):
            end.settimeout(SECONDS)
        self.ended: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
        self.pump = Pump(left, right, self.ended.put)
        self.pump.start()


@pytest.fixture
def joined() -> Iterator[Joined]:
    made = Joined()
    with made.source, made.destination:
        yield made
    assert made.pump.join(SECONDS)


def read_all(end: socket.socket) -> bytes:
    parts = []
    while part := end.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_both_directions_and_their_ends(joined: Joined) -> None:
    sent = bytes(range(256)) * 40_000

    def write() -> None:
        joined.source.sendall(sent)
        joined.source.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_all(joined.destination) == sent
    joined.destination.sendall(b"late words")
    joined.destination.close()
    assert read_all(joined.source) == b"late words"
    writer.join(SECONDS)
    assert joined.ended.get(timeout=SECONDS) is None
    assert joined.pump.join(SECONDS)
    assert (joined.pump.forward, joined.pump.backward) == (len(sent), 10)


def test_a_cut_ends_both_sides(joined: Joined) -> None:
    joined.source.sendall(b"x")
    assert joined.destination.recv(1) == b"x"
    joined.pump.cut()
    assert joined.pump.join(SECONDS)
    assert not joined.source.recv(1)
    assert not joined.destination.recv(1)
    joined.ended.get(timeout=SECONDS)


def test_a_destination_that_goes_away_ends_the_source(joined: Joined) -> None:
    joined.destination.close()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        joined.source.sendall(bytes(1 << 26))
    assert joined.pump.join(SECONDS)


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        end = socket.create_connection(listener.getsockname())
        return end, listener.accept()[0]


def test_a_few_bytes_do_not_wait_for_more() -> None:
    # TCP keeps back, for a fifth of a second, what it was told that more will follow.
    (source, left), (right, destination) = connected(), connected()
    pump = Pump(left, right, lambda _: None)
    pump.start()
    with source, destination:
        destination.settimeout(SECONDS)
        began = time.monotonic()
        for _ in range(20):
            source.sendall(b"sync")
            assert destination.recv(4) == b"sync"
        assert time.monotonic() - began < 20 * 0.1
    assert pump.join(SECONDS)
