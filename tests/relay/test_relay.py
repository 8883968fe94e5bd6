# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole relay between a made-up source and a made-up destination: what each of them sees, whatever fails."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from qmpfilter.errors import HostError, PolicyError, QmpfilterError
from qmpfilter.filter.gate import Gate, Piece
from qmpfilter.filter.policy import Policy
from qmpfilter.relay.address import Address, TcpAddress, UnixAddress
from qmpfilter.relay.channel import Channel
from qmpfilter.relay.deadline import Deadline
from qmpfilter.relay.limits import LONGEST, Waits
from qmpfilter.relay.looker import Looker
from qmpfilter.relay.relay import Relay
from qmpfilter.relay.session import SHUT_FAILED, Outcome
from qmpfilter.relay.storage import Storage
from qmpfilter.wire.framing import BE32, COMMAND_HEADER
from qmpfilter.wire.withdrawal import withdrawal
from tests.helpers.migration import everything, exactly

SECONDS = 10.0
QUICK = Waits(source=5, connect=5, hello=0.5, idle=5, tail=0.3, linger=1)
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
PONG = COMMAND_HEADER.pack(2, 4) + BE32.pack(1)
SHUT_OK = COMMAND_HEADER.pack(1, 4) + BE32.pack(0)
# Little enough that nobody has to read for it to be sent.
RAM = b"QEVM" + bytes(1 << 16)
TAIL = b"tail of devices"
END = b"\0and vmdesc"


class Marked:
    """Knows the commit point by its place; raises or holds there if asked to.

    :param committing: called before the piece that commits is given
    """

    def __init__(
        self,
        *,
        error: QmpfilterError | None = None,
        hold: bool = False,
        between_sections: bool = False,
        committing: Callable[[], object] = bool,
    ) -> None:
        self.return_path = True
        self.postcopy = False
        self.between_sections = between_sections
        self.admitted = True
        self.holding = False
        self.seen = 0
        self._error = error
        self._hold = hold
        self._committing = committing

    def accept(self) -> bool:
        return False

    def pass_pages(self, data: memoryview) -> bool:
        # What comes first tells of the return path.
        if not self.seen or self.seen + len(data) > len(RAM):
            return False
        self.seen += len(data)
        return True

    def receive_data(self, data: memoryview) -> Iterator[Piece]:
        before = max(0, len(RAM + TAIL) - self.seen)
        self.seen += len(data)
        if before:
            yield Piece(data[:before])
        if self.seen > len(RAM + TAIL) or (self._hold and self.seen == len(RAM + TAIL)):
            if self._error is not None:
                raise self._error
            self.holding = True
            yield Piece(b"")
            self.holding = self._hold
            if not self._hold and data[before:]:
                self._committing()
                yield Piece(data[before:], commit=True)

    def receive_eof(self) -> Iterable[Piece]:
        return ()


class Rig:
    """A running relay; `destinations` are the ends of its onward connections, in order.

    :param disks: where the guest's disks come, at a port of their own or by saying nothing
    """

    def __init__(
        self, directory: Path, looker: Looker, waits: Waits = QUICK, *, tcp: bool = False, disks: str = ""
    ) -> None:
        self.stack = ExitStack()
        self.address: Address = TcpAddress("127.0.0.1", 0) if tcp else UnixAddress(str(directory / "relay"))
        self.listener = self.address.listen()
        if tcp:
            self.address = TcpAddress(*self.listener.getsockname())
        self.destinations: queue.Queue[socket.socket] = queue.Queue()
        self.listens = True
        self.disks = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.copies: queue.Queue[socket.socket] = queue.Queue()
        self.greeting = b"NBDMAGIC"
        self._at_port = disks == "at a port"
        port = self.disks.getsockname()[1] if self._at_port else None
        storage = Storage(self._connect_disk, port, silent=disks == "silent")
        self.relay = Relay(self._connect, looker, waits, storage=storage)
        self.thread = threading.Thread(target=self.relay.run, args=([self.listener, self.disks],), daemon=True)
        self.thread.start()

    def _connect(self, _: Deadline, _source: socket.socket) -> socket.socket:
        if not self.listens:
            raise HostError("cannot connect to the destination: Connection refused")
        ours, theirs = socket.socketpair()
        theirs.settimeout(SECONDS)
        self.destinations.put(self.stack.enter_context(theirs))
        return ours

    def _connect_disk(self, _: Deadline, _source: socket.socket) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.settimeout(SECONDS)
        theirs.sendall(self.greeting)
        self.copies.put(self.stack.enter_context(theirs))
        return ours

    def dial_for_disk(self) -> socket.socket:
        """A connection of the source for a disk."""
        if not self._at_port:
            return self.dial()
        source = self.stack.enter_context(socket.create_connection(self.disks.getsockname()))
        source.settimeout(SECONDS)
        return source

    def dial(self, first: bytes = b"") -> socket.socket:
        source = self.stack.enter_context(self.address.connect(Deadline(SECONDS, "connecting")))
        source.settimeout(SECONDS)
        source.sendall(first)
        return source

    def destination(self) -> socket.socket:
        return self.destinations.get(timeout=SECONDS)

    def outcome(self) -> Outcome | None:
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        return self.relay.session.outcome


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, Marked())
    with made.stack:
        yield made


def test_a_migration_that_completes(rig: Rig) -> None:
    source = rig.dial(RAM)
    destination = rig.destination()
    assert exactly(destination, len(RAM)) == RAM
    destination.sendall(PONG)
    assert exactly(source, len(PONG)) == PONG
    source.sendall(TAIL + END)
    assert exactly(destination, len(TAIL + END)) == TAIL + END
    destination.sendall(SHUT_OK)
    destination.close()
    assert everything(source) == SHUT_OK
    source.close()
    assert rig.outcome() is Outcome.COMPLETED
    assert (rig.relay.forward, rig.relay.backward) == (len(RAM + TAIL + END), len(PONG + SHUT_OK))
    assert list(rig.relay.moments)[-4:] == ["tail", "committed", "answered", "ended"]
    assert 0 < rig.relay.times["tail"] < rig.relay.times["total"]


def test_a_source_that_half_closes_hears_the_answer(rig: Rig) -> None:
    source = rig.dial(RAM + TAIL + END)
    source.shutdown(socket.SHUT_WR)
    destination = rig.destination()
    assert everything(destination) == RAM + TAIL + END
    destination.sendall(SHUT_OK)
    destination.close()
    assert everything(source) == SHUT_OK
    assert rig.outcome() is Outcome.COMPLETED


def test_a_veto_leaves_the_guest_at_the_source(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Marked(error=PolicyError("its kernel refuses the state")))
    with rig.stack:
        source = rig.dial(RAM)
        destination = rig.destination()
        assert exactly(destination, len(RAM)) == RAM
        source.sendall(TAIL + END)
        assert everything(destination) in (b"", TAIL)
        assert everything(source) == SHUT_FAILED
        source.close()
        assert rig.outcome() is Outcome.VETOED
        assert rig.relay.session.reason == "its kernel refuses the state"


def test_a_destination_that_waits_for_a_section_hears_why_before_the_source_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Marked(error=PolicyError("its kernel refuses the state"), between_sections=True))
    with rig.stack:
        source = rig.dial(RAM)
        destination = rig.destination()
        assert exactly(destination, len(RAM)) == RAM
        source.sendall(TAIL + END)
        assert everything(destination).removeprefix(TAIL) == withdrawal("its kernel refuses the state")
        source.setblocking(False)
        with pytest.raises(BlockingIOError):
            source.recv(1)
        source.settimeout(SECONDS)
        destination.sendall(SHUT_FAILED)
        destination.close()
        assert everything(source) == SHUT_FAILED
        source.close()
        assert rig.outcome() is Outcome.VETOED


def test_a_destination_that_takes_no_words_does_not_keep_the_source_waiting(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Marked(error=PolicyError("its kernel refuses the state"), between_sections=True))
    with rig.stack:
        source = rig.dial(RAM + TAIL + END)
        rig.destination()
        assert everything(source) == SHUT_FAILED
        source.close()
        assert rig.outcome() is Outcome.VETOED


def test_a_tail_that_takes_too_long(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Marked(hold=True))
    with rig.stack:
        source = rig.dial(RAM + TAIL)
        destination = rig.destination()
        assert everything(destination) == RAM + TAIL
        assert everything(source) == SHUT_FAILED
        source.close()
        assert rig.outcome() is Outcome.FAILED
        assert "longer than 0.3 s" in rig.relay.session.reason


def test_a_tail_of_one_read_that_waits_for_something_of_ours(tmp_path: Path) -> None:
    goes_on = threading.Event()
    rig = Rig(tmp_path, Marked(committing=lambda: goes_on.wait(SECONDS)))
    with rig.stack:
        source = rig.dial(RAM[:100])
        destination = rig.destination()
        assert exactly(destination, 100) == RAM[:100]
        source.sendall(RAM[100:] + TAIL + END)
        # While the thread that reads the source hangs.
        assert everything(source) == SHUT_FAILED
        goes_on.set()
        source.close()
        assert rig.outcome() is Outcome.FAILED
        assert everything(destination) == RAM[100:] + TAIL
        assert "longer than 0.3 s" in rig.relay.session.reason
        assert "committed" not in rig.relay.moments


def test_a_destination_that_dies_while_ram_is_sent(rig: Rig) -> None:
    source = rig.dial(RAM)
    destination = rig.destination()
    assert exactly(destination, 1) == RAM[:1]
    destination.close()
    assert everything(source) == SHUT_FAILED
    source.close()
    assert rig.outcome() is Outcome.REFUSED


def test_a_destination_that_dies_after_the_commit_point(rig: Rig) -> None:
    source = rig.dial(RAM + TAIL + END)
    destination = rig.destination()
    assert exactly(destination, len(RAM + TAIL + END)) == RAM + TAIL + END
    destination.close()
    assert everything(source) == SHUT_FAILED
    source.close()
    assert rig.outcome() is Outcome.REFUSED


def test_a_destination_that_says_no(rig: Rig) -> None:
    source = rig.dial(RAM + TAIL + END)
    destination = rig.destination()
    assert exactly(destination, len(RAM + TAIL + END)) == RAM + TAIL + END
    destination.sendall(SHUT_FAILED)
    destination.close()
    assert everything(source) == SHUT_FAILED
    source.close()
    assert rig.outcome() is Outcome.REFUSED


def test_a_source_that_dies_takes_the_destination_with_it(rig: Rig) -> None:
    source = rig.dial(RAM)
    destination = rig.destination()
    assert exactly(destination, len(RAM)) == RAM
    source.close()
    assert everything(destination) == b""
    assert rig.outcome() is Outcome.CANCELLED


def test_the_longest_waits_that_there_may_be(tmp_path: Path) -> None:
    made = Rig(tmp_path, Marked(), Waits(LONGEST, LONGEST, LONGEST, LONGEST, LONGEST, LONGEST, linger=1))
    with made.stack:
        made.dial(RAM).close()
        assert exactly(made.destination(), len(RAM)) == RAM
        assert made.outcome() is Outcome.CANCELLED


def test_nothing_is_connected_before_the_source_is(rig: Rig) -> None:
    rig.dial().close()
    multifd = rig.dial(b"\x11\x22\x33\x44rest")
    with pytest.raises(queue.Empty):
        rig.destinations.get(timeout=1)
    source = rig.dial(RAM)
    main = rig.destination()
    assert exactly(main, len(RAM)) == RAM
    extra = rig.destination()
    assert exactly(extra, 8) == b"\x11\x22\x33\x44rest"
    extra.sendall(b"back")
    assert exactly(multifd, 4) == b"back"
    assert rig.relay.channels == [Channel.MAIN, Channel.MULTIFD]
    # Of what is still on its way nothing is counted yet.
    assert [channel for channel, _, _ in rig.relay.traffic] == [Channel.MAIN, Channel.MULTIFD]
    source.close()
    assert rig.outcome() is Outcome.CANCELLED
    assert everything(multifd) == b""
    assert rig.relay.traffic == [(Channel.MAIN, len(RAM), 0), (Channel.MULTIFD, 8, 4)]


def test_an_extra_channel_that_stays_silent(rig: Rig) -> None:
    source = rig.dial(RAM)
    main = rig.destination()
    silent = rig.dial()
    extra = rig.destination()
    source.sendall(TAIL + END)
    assert exactly(main, len(RAM + TAIL + END)) == RAM + TAIL + END
    extra.close()
    assert everything(silent) == b""
    main.sendall(SHUT_OK)
    main.close()
    assert everything(source) == SHUT_OK
    source.close()
    silent.close()
    assert rig.outcome() is Outcome.COMPLETED
    assert rig.relay.channels == [Channel.MAIN, Channel.OTHER]


@pytest.mark.parametrize("disks", ["at a port", "silent"])
def test_disks_are_copied_before_the_guest_comes(tmp_path: Path, disks: str) -> None:
    # The guest comes when nobody would wait for it any more but for its disks.
    rig = Rig(tmp_path, Marked(), replace(QUICK, source=1, hello=0.1), disks=disks)
    with rig.stack:
        client = rig.dial_for_disk()
        server = rig.copies.get(timeout=SECONDS)
        assert exactly(client, 8) == b"NBDMAGIC"
        for _ in range(8):
            time.sleep(0.2)
            client.sendall(b"a block")
            assert exactly(server, 7) == b"a block"
        source = rig.dial(RAM)
        destination = rig.destination()
        assert exactly(destination, len(RAM)) == RAM
        if disks == "at a port":
            second = rig.dial_for_disk()
            rig.copies.get(timeout=SECONDS)
            second.close()
        client.close()
        assert everything(server) == b""
        source.sendall(TAIL + END)
        assert exactly(destination, len(TAIL + END)) == TAIL + END
        completes(rig, source, destination)
        assert rig.relay.channels[:2] == [Channel.STORAGE, Channel.MAIN]


@pytest.mark.parametrize("disks", ["at a port", "silent"])
def test_a_guest_that_does_not_follow_its_disks(tmp_path: Path, disks: str) -> None:
    rig = Rig(tmp_path, Marked(), replace(QUICK, source=0.5, hello=0.1), disks=disks)
    with rig.stack:
        client = rig.dial_for_disk()
        rig.copies.get(timeout=SECONDS)
        client.close()
        assert rig.outcome() is Outcome.FAILED
        assert "waiting for the source to connect" in rig.relay.session.reason


@pytest.mark.parametrize("disks", ["at a port", "silent"])
@pytest.mark.parametrize("greeting", [b"SSH-2.0", b""], ids=["another", "none"])
def test_a_guest_is_never_taken_for_a_disk(tmp_path: Path, disks: str, greeting: bytes) -> None:
    rig = Rig(tmp_path, Marked(), replace(QUICK, connect=0.5, hello=0.1), disks=disks)
    rig.greeting = greeting
    with rig.stack:
        late = rig.dial_for_disk()
        there = rig.copies.get(timeout=SECONDS)
        # It may be closed by now, and what is not read when it is closed resets it.
        with contextlib.suppress(ConnectionError):
            late.sendall(RAM)
            assert everything(late) == b""
        assert everything(there) == b""
        rig.relay.stop(HostError("enough"))
        assert rig.outcome() is Outcome.FAILED
        assert rig.relay.channels == []


def test_a_disk_of_which_nothing_comes_keeps_nobody_waiting(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Marked(), replace(QUICK, source=0.5), disks="at a port")
    with rig.stack:
        client = rig.dial_for_disk()
        assert exactly(client, 8) == b"NBDMAGIC"
        assert rig.outcome() is Outcome.FAILED
        assert "waiting for the source to connect" in rig.relay.session.reason


def test_what_was_stopped_connects_nobody(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Marked(), disks="at a port")
    rig.greeting = b""
    with rig.stack:
        # The relay waits for a greeting, and the source for the relay.
        rig.dial_for_disk()
        rig.copies.get(timeout=SECONDS)
        rig.dial(RAM)
        rig.relay.stop(HostError("the operator wants it"), Outcome.STOPPED)
        assert rig.outcome() is Outcome.STOPPED
        assert rig.destinations.empty()


def test_stopping_while_disks_are_copied(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Marked(), disks="at a port")
    with rig.stack:
        client = rig.dial_for_disk()
        assert exactly(client, 8) == b"NBDMAGIC"
        rig.relay.stop(HostError("the operator wants it"), Outcome.STOPPED)
        assert rig.outcome() is Outcome.STOPPED
        assert everything(client) == b""


def test_tls_is_refused_in_words(rig: Rig) -> None:
    source = rig.dial(b"\x16\x03\x01\x02")
    assert everything(source) == b""
    assert rig.outcome() is Outcome.FAILED
    assert "tls-creds" in rig.relay.session.reason


def test_nobody_comes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Marked(), Waits(source=0.1))
    with rig.stack:
        assert rig.outcome() is Outcome.FAILED
        assert "waiting for the source" in rig.relay.session.reason


def test_stopping_from_outside(rig: Rig) -> None:
    source = rig.dial(RAM)
    destination = rig.destination()
    assert exactly(destination, len(RAM)) == RAM
    rig.relay.stop(PolicyError("its kernel refuses the state"), Outcome.VETOED)
    assert everything(source) == SHUT_FAILED
    source.close()
    assert rig.outcome() is Outcome.VETOED


def test_a_connection_that_is_at_hand_is_the_source(tmp_path: Path) -> None:
    source, ours = socket.socketpair()
    destination, theirs = socket.socketpair()
    relay = Relay(lambda *_: theirs, Marked(), QUICK)
    with source, destination:
        thread = threading.Thread(target=relay.run, args=([ours],), daemon=True)
        thread.start()
        source.sendall(RAM + TAIL + END)
        assert exactly(destination, len(RAM + TAIL + END)) == RAM + TAIL + END
        destination.sendall(SHUT_OK)
        destination.close()
        assert everything(source) == SHUT_OK
        source.close()
        thread.join(SECONDS)
    assert relay.session.outcome is Outcome.COMPLETED


def test_a_connection_at_hand_that_sends_nothing_can_be_interrupted() -> None:
    source, ours = socket.socketpair()
    relay = Relay(lambda *_: ours, Marked(), replace(QUICK, source=60))
    with source:
        thread = threading.Thread(target=relay.run, args=([ours],), daemon=True)
        thread.start()
        relay.interrupt()
        thread.join(SECONDS)
    assert relay.session.outcome is Outcome.STOPPED


def test_file_descriptors_are_not_swallowed(rig: Rig) -> None:
    source = rig.dial(RAM)
    destination = rig.destination()
    assert exactly(destination, len(RAM)) == RAM
    socket.send_fds(source, [b"x"], [0])
    assert everything(source) == SHUT_FAILED
    source.close()
    assert rig.outcome() is Outcome.FAILED
    assert "without CPR" in rig.relay.session.reason


def test_a_bug_leaves_the_guest_at_the_source(tmp_path: Path) -> None:
    made = Rig(tmp_path, Marked(error=KeyError("surprise")))  # type: ignore[arg-type]  # no error of the tree
    with made.stack:
        source = made.dial(RAM + TAIL + END)
        destination = made.destination()
        assert everything(destination) == RAM + TAIL
        assert everything(source) == SHUT_FAILED
        source.close()
        assert made.outcome() is Outcome.FAILED
    assert "KeyError" in made.relay.session.reason


def test_stopped_before_anybody_came(tmp_path: Path) -> None:
    made = Rig(tmp_path, Marked())
    with made.stack:
        made.relay.stop(PolicyError("enough"))
        assert made.outcome() is Outcome.FAILED
    assert made.relay.session.reason == "enough"


def committed(rig: Rig) -> tuple[socket.socket, socket.socket]:
    """Source and destination of a migration of which everything was sent."""
    source = rig.dial(RAM + TAIL + END)
    destination = rig.destination()
    assert exactly(destination, len(RAM + TAIL + END)) == RAM + TAIL + END
    return source, destination


def completes(rig: Rig, source: socket.socket, destination: socket.socket) -> None:
    destination.sendall(SHUT_OK)
    destination.close()
    assert everything(source).endswith(SHUT_OK)
    source.close()
    assert rig.outcome() is Outcome.COMPLETED


def test_a_destination_may_take_its_time_after_the_commit_point(tmp_path: Path) -> None:
    made = Rig(tmp_path, Marked(), replace(QUICK, idle=0.1, answer=SECONDS))
    with made.stack:
        ends = committed(made)
        time.sleep(0.5)
        completes(made, *ends)


def test_a_destination_that_never_answers_leaves_it_in_doubt(tmp_path: Path) -> None:
    made = Rig(tmp_path, Marked(), replace(QUICK, answer=0.2))
    with made.stack:
        source, destination = committed(made)
        assert everything(source) == b""
        assert everything(destination) == b""
        source.close()
        assert made.outcome() is Outcome.IN_DOUBT
    assert "for 0.2 s" in made.relay.session.reason


def test_after_the_commit_point_nobody_can_stop_it(rig: Rig) -> None:
    source, destination = committed(rig)
    rig.relay.stop(PolicyError("too late"))
    completes(rig, source, destination)
    assert rig.relay.session.late == ["too late"]


def test_what_is_no_return_path_passes_after_the_commit_point(rig: Rig) -> None:
    source, destination = committed(rig)
    destination.sendall(PONG[:6])
    destination.sendall(PONG[6:] + b"\xff\xfe\0\0 and more")
    destination.close()
    assert everything(source) == PONG + b"\xff\xfe\0\0 and more"
    source.close()
    assert rig.outcome() is Outcome.IN_DOUBT


@pytest.mark.parametrize("nonsense", [b"\xff\xfe\0\0", SHUT_OK], ids=["garbage", "runs a guest it cannot have"])
def test_what_is_no_return_path_stops_it_before(rig: Rig, nonsense: bytes) -> None:
    source = rig.dial(RAM)
    destination = rig.destination()
    assert exactly(destination, len(RAM)) == RAM
    destination.sendall(PONG + nonsense)
    assert everything(source) == PONG + SHUT_FAILED
    source.close()
    assert rig.outcome() is Outcome.FAILED


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01\x02 a TLS hello", b"\x08 resumes"])
def test_strangers_stop_nothing(tmp_path: Path, first: bytes) -> None:
    made = Rig(tmp_path, Marked(), tcp=True)
    with made.stack:
        source = made.dial(RAM)
        destination = made.destination()
        assert exactly(destination, len(RAM)) == RAM
        stranger = made.dial(first)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        stranger.close()
        source.sendall(TAIL + END)
        assert exactly(destination, len(TAIL + END)) == TAIL + END
        completes(made, source, destination)


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.0\r\n\r\n"], ids=["silent", "asks"])
def test_strangers_stop_nothing_where_the_destination_takes_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: bytes
) -> None:
    made = Rig(tmp_path, Marked())
    with made.stack:
        source = made.dial(RAM)
        destination = made.destination()
        assert exactly(destination, len(RAM)) == RAM
        made.listens = False
        assert everything(made.dial(first)) == b""
        source.sendall(TAIL + END)
        assert exactly(destination, len(TAIL + END)) == TAIL + END
        completes(made, source, destination)
    assert made.relay.channels == [Channel.MAIN]
    assert "a further connection was closed: cannot connect to the destination" in caplog.text


def test_a_multifd_channel_that_the_destination_does_not_take(rig: Rig) -> None:
    source = rig.dial(RAM)
    destination = rig.destination()
    assert exactly(destination, len(RAM)) == RAM
    rig.listens = False
    assert everything(rig.dial(b"\x11\x22\x33\x44rest")) == b""
    assert everything(source) == SHUT_FAILED
    source.close()
    assert rig.outcome() is Outcome.FAILED
    assert "Connection refused" in rig.relay.session.reason


def test_a_destination_that_reads_no_more_and_says_nothing(tmp_path: Path) -> None:
    made = Rig(tmp_path, Marked(), replace(QUICK, linger=0.2, idle=60))
    with made.stack:
        source = made.dial(RAM[:100])
        destination = made.destination()
        assert exactly(destination, 100) == RAM[:100]
        destination.shutdown(socket.SHUT_RD)
        source.sendall(RAM[100:])
        assert everything(source) == SHUT_FAILED
        source.close()
        assert made.outcome() is Outcome.REFUSED


def test_what_a_destination_attaches_to_its_words_is_dropped(rig: Rig) -> None:
    source, destination = committed(rig)
    socket.send_fds(destination, [SHUT_OK], [destination.fileno()])
    destination.close()
    assert everything(source) == SHUT_OK
    source.close()
    assert rig.outcome() is Outcome.COMPLETED


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x02 a TLS hello", b"QEVM\0\0\0\x03\x07"])
def test_switched_off_everything_passes(tmp_path: Path, first: bytes) -> None:
    gate = Gate(Policy(), lambda: True)
    made = Rig(tmp_path, gate)
    with made.stack:
        source = made.dial(first)
        destination = made.destination()
        extra = made.dial(first)
        second = made.destination()
        assert exactly(second, len(first)) == first
        extra.close()
        source.shutdown(socket.SHUT_WR)
        assert everything(destination) == first
        destination.sendall(b"anything")
        destination.close()
        assert everything(source) == b"anything"
        source.close()
        assert made.outcome() is not None
    assert gate.switched_off


def test_switched_off_a_stranger_is_not_the_source(tmp_path: Path) -> None:
    made = Rig(tmp_path, Gate(Policy(), lambda: True), replace(QUICK, hello=0.1))
    with made.stack:
        made.dial()
        source = made.dial(b"anything")
        destination = made.destination()
        assert exactly(destination, 8) == b"anything"
        assert made.relay.channels[0] is Channel.MAIN
        made.destination()
        source.shutdown(socket.SHUT_WR)
        destination.close()
        source.close()
        assert made.outcome() is not None
        assert made.relay.channels == [Channel.MAIN, Channel.OTHER]


def test_a_source_that_goes_on_sending_is_not_listened_to_for_ever(tmp_path: Path) -> None:
    made = Rig(tmp_path, Marked(), replace(QUICK, linger=0.3, idle=60))
    with made.stack:
        source = made.dial(RAM[:100])
        made.destination()
        made.relay.stop(PolicyError("enough"))
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < SECONDS:
                source.sendall(bytes(1000))
                time.sleep(0.01)
        assert time.monotonic() - began < SECONDS / 2
        assert made.outcome() is Outcome.FAILED
