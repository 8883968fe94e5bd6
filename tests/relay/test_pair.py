# SPDX-License-Identifier: GPL-2.0-or-later
"""Two relays of one migration: what the one at the source makes of how the other one ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qmpfilter.filter.gate import Gate
from qmpfilter.filter.policy import Policy
from qmpfilter.relay.address import Destination, Listening, PairAddress, UnixAddress
from qmpfilter.relay.deadline import Deadline
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.pair import Pair, Pairing
from qmpfilter.relay.relay import Relay
from qmpfilter.relay.session import SHUT_FAILED, Outcome, Phase
from tests.helpers.migration import SHUT_OK, STREAM, everything, exactly, sending

SECONDS = 10.0


class Filter:
    """One of both, in a thread of its own."""

    def __init__(self, listen: Listening, destination: Destination, waits: Waits) -> None:
        gate = Gate(Policy())
        pair = Pair(Pairing(), waits, gate, lambda: False)
        self.relay: Relay = pair.relay(destination)
        sockets = pair.welcoming(listen, [listen.listen()], lambda: self.relay.session.phase is Phase.WAITING)
        self._thread = threading.Thread(target=self.relay.run, args=(sockets,), daemon=True)
        self._thread.start()

    def outcome(self) -> Outcome | None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.relay.session.outcome


class Chain:
    """A source, two filters, and a destination that has got everything."""

    def __init__(self, stack: ExitStack, directory: Path, far: Waits, *, paired: bool = True) -> None:
        plain = UnixAddress(str(directory / "between"))
        between = PairAddress(plain) if paired else plain
        incoming = UnixAddress(str(directory / "incoming"))
        relay = UnixAddress(str(directory / "relay"))
        listener = stack.enter_context(incoming.listen())
        listener.settimeout(SECONDS)
        self.far = Filter(between, incoming, far)
        self.near = Filter(relay, between, Waits(linger=1))
        self.source = stack.enter_context(relay.connect(Deadline(SECONDS, "connecting")))
        self.source.settimeout(SECONDS)
        sender = sending(self.source, STREAM)
        self.destination: socket.socket = stack.enter_context(listener.accept()[0])
        self.destination.settimeout(SECONDS)
        exactly(self.destination, len(STREAM))
        sender.join(SECONDS)

    def heard(self) -> bytes:
        """What came to the source until its end."""
        heard = everything(self.source)
        self.source.close()
        return heard


@pytest.fixture(params=[True, False], ids=["pair", "plain"])
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chain]:
    with ExitStack() as stack:
        yield Chain(stack, tmp_path, Waits(linger=1), paired=request.param)


def test_a_destination_that_ends_without_a_word(chain: Chain) -> None:
    chain.destination.close()
    assert chain.heard() == SHUT_FAILED
    assert (chain.far.outcome(), chain.near.outcome()) == (Outcome.REFUSED, Outcome.REFUSED)


def test_a_destination_that_takes_the_guest(chain: Chain) -> None:
    chain.destination.sendall(SHUT_OK)
    chain.destination.close()
    assert chain.heard() == SHUT_OK
    assert (chain.far.outcome(), chain.near.outcome()) == (Outcome.COMPLETED, Outcome.COMPLETED)


def test_what_is_in_doubt_there_is_in_doubt_here(tmp_path: Path) -> None:
    with ExitStack() as stack:
        chain = Chain(stack, tmp_path, Waits(linger=1, answer=0.2))
        assert chain.heard() == b""
        assert (chain.far.outcome(), chain.near.outcome()) == (Outcome.IN_DOUBT, Outcome.IN_DOUBT)
    assert "the other filter ended" in chain.near.relay.session.reason
