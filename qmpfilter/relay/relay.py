# SPDX-License-Identifier: GPL-2.0-or-later
"""One migration from listening sockets to a destination: threads that wait, and nothing else.

The forward thread reads the source, the backward thread the destination; the thread that calls
:meth:`Relay.run` accepts connections. What to do when an end goes away is decided by
:class:`~qmpfilter.relay.session.Session`, and done here under one lock.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from qmpfilter.errors import (
    BugError,
    DeadlineError,
    HostError,
    QmpfilterError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from qmpfilter.filter.gate import Piece
from qmpfilter.relay.address import tune
from qmpfilter.relay.channel import Channel, channel_of, channel_of_any, first_bytes
from qmpfilter.relay.deadline import Deadline
from qmpfilter.relay.door import Door
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.line import Line
from qmpfilter.relay.looker import Looker
from qmpfilter.relay.pump import Pump
from qmpfilter.relay.session import SHUT_FAILED, Action, Outcome, Phase, Session, outcome_of
from qmpfilter.relay.storage import NO_STORAGE, Storage
from qmpfilter.relay.watch import Watch
from qmpfilter.relay.withdraw import withdraw
from qmpfilter.wire.feed import NeedData
from qmpfilter.wire.returnpath import ReturnPathParser

__all__ = ["Relay"]

_log: Final = logging.getLogger(__name__)

_BUFFER: Final = 1 << 20
_FIRST: Final = 4096
_SILENCE: Final = 0.2


class Relay:
    """Relays one migration, once.

    :param connect: opens a connection to the destination within a deadline, for a connection of the source
    :param looker: sees the main channel
    :param waits: how long to wait for what
    :param paired: those connections lead to another filter
    :param storage: which connections are for the guest's disks
    :ivar session: what became of it
    :ivar backward: bytes passed on to the source on the return path
    :ivar channels: the source's channels in the order in which they were connected onward
    :ivar times: seconds: "total" from the source's connection to the end, "tail" from the first byte of the
        tail to the commit point
    :ivar moments: when what happened, UTC: "waiting", "connected", "return path", "tail", "committed", "answered",
        "ended"
    """

    def __init__(
        self,
        connect: Callable[[Deadline, socket.socket], socket.socket],
        looker: Looker,
        waits: Waits,
        *,
        paired: bool = False,
        storage: Storage = NO_STORAGE,
    ) -> None:
        self.session = Session(paired=paired)
        self._storage = storage
        self.backward = 0
        self.channels: list[Channel] = []
        self.times: dict[str, float] = {}
        self.moments: dict[str, datetime] = {}
        self._connect = connect
        self._looker = looker
        self._waits = waits
        self._lock = threading.RLock()
        self._to_source = threading.Lock()
        self._source: socket.socket | None = None
        self._destination: socket.socket | None = None
        self._line: Line | None = None
        self._pumps: list[tuple[Channel, Pump]] = []
        self._door = Door()
        self._interrupted = False
        self._unread = False
        self._wide = False
        self._watch: Watch | None = None
        self._began: float | None = None
        self._tail_began: float | None = None

    @property
    def forward(self) -> int:
        """Bytes passed on to the destination on the main channel."""
        return 0 if self._line is None else self._line.forward

    @property
    def traffic(self) -> list[tuple[Channel, int, int]]:
        """Of each channel that was connected onward the bytes forward and back, the main one first."""
        pumped = [(channel, pump.forward, pump.backward) for channel, pump in self._pumps]
        return [(Channel.MAIN, self.forward, self.backward), *pumped]

    def run(self, sockets: Sequence[socket.socket]) -> Outcome:
        """Wait for the source, relay until both sides are done, close everything.

        :param sockets: where the source connects, or connections of it; they are closed at the end
        """
        self._note("waiting")
        threads: list[threading.Thread] = []
        listeners = [end for end in sockets if end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]
        connected = [end for end in sockets if end not in listeners]
        try:
            main, early = self._await_main(listeners, connected)
            threads = self._open_main(main)
            for extra, kind in early:
                self._open_extra(extra, kind)
            self._accept_extras(listeners, threads)
        except (QmpfilterError, OSError) as error:
            self._stop(error, outcome_of(error))
        except BaseException as error:
            self._stop(BugError(f"{type(error).__name__} in the relay: {error}"))
            raise
        finally:
            for end in (*listeners, *connected):
                end.close()
            self._finish(threads)
        assert self.session.outcome is not None
        return self.session.outcome

    def stop(self, cause: QmpfilterError, outcome: Outcome = Outcome.FAILED) -> None:
        """End the migration as far as that is still possible; from any thread."""
        self._stop(cause, outcome)

    def interrupt(self) -> None:
        """The same from a signal handler, which may not wait for a lock."""
        self._interrupted = True
        self._door.wake()

    # --- connections ---------------------------------------------------------------------------

    def _await_main(
        self, listeners: Sequence[socket.socket], connected: list[socket.socket]
    ) -> tuple[socket.socket, list[tuple[socket.socket, Channel]]]:
        """The source's main channel, and extra channels that came before it."""
        deadline = Deadline(self._waits.source, "waiting for the source to connect")
        early: list[tuple[socket.socket, Channel]] = []
        copied = 0
        try:
            while True:
                self._heed_interrupt()
                self._check_not_ended()
                if (moved := sum(pump.forward + pump.backward for _, pump in self._pumps)) != copied:
                    # Disks take their time, and the guest comes after them.
                    copied, deadline = moved, Deadline(self._waits.source, deadline.what)
                at_hand = connected.pop(0) if connected else None
                left = deadline.remaining()
                connection = at_hand or self._door.accept(listeners, min(left, _SILENCE) if self._pumps else left)
                if connection is None:
                    continue
                if self._storage.has_port_of(connection):
                    self._open_extra(connection, Channel.STORAGE)
                    continue
                # Who has connected once will not do so again: all the time there is.
                if at_hand and not self._await_bytes(connection, deadline):
                    connection.close()
                    raise HostError("the migration was ended before the source sent anything")
                first = first_bytes(connection, self._storage.patience(self._waits.hello))
                if first is None:
                    # Somebody tried whether anyone listens: nothing that a destination may see.
                    connection.close()
                    continue
                self._unread = self._looker.accept()
                try:
                    kind = channel_of_any(first) if self._unread else channel_of(first)
                except UnsupportedError:
                    connection.close()
                    raise
                if kind is Channel.MAIN:
                    return connection, early
                if self._storage.means(first):
                    self._open_extra(connection, Channel.STORAGE)
                    continue
                early.append((connection, kind))
        except BaseException:
            for connection, _ in early:
                connection.close()
            raise

    def _await_bytes(self, connection: socket.socket, deadline: Deadline) -> bool:
        """False if the migration was ended before anything came."""
        while self._door.ready([connection], deadline.remaining()) is None:
            self._heed_interrupt()
            if self.session.phase is Phase.ENDED:
                return False
        return True

    def _check_not_ended(self) -> None:
        if self.session.phase is Phase.ENDED:
            raise HostError("the migration was ended before the source connected")

    def _open_main(self, source: socket.socket) -> list[threading.Thread]:
        self._source = source
        # A destination that is connected to and left is lost.
        self._check_not_ended()
        self.channels.append(Channel.MAIN)
        self._destination = self._connect(Deadline(self._waits.connect, "connecting to the destination"), source)
        line = self._line = Line(source, self._destination, self._waits, lambda: self.session.phase)
        late = DeadlineError(f"the state of devices took longer than {self._waits.tail:g} s")
        self._watch = Watch(self._waits.tail, functools.partial(self._stop, late))
        self.session.connected()
        self._note("connected")
        self._began = time.monotonic()
        threads = [
            threading.Thread(target=target, args=(line,), name=name, daemon=True)
            for name, target in (("forward", self._pass_forward), ("backward", self._pass_back))
        ]
        for thread in threads:
            thread.start()
        return threads

    def _open_extra(self, source: socket.socket, kind: Channel) -> None:
        """:raises QmpfilterError: a channel of this migration, for all that can be known, cannot be connected onward
        :raises OSError: the same
        """
        try:
            onward = self._storage.connect if kind is Channel.STORAGE else self._connect
            destination = onward(Deadline(self._waits.connect, "connecting an extra channel"), source)
            tune(source)
            tune(destination)
        except (QmpfilterError, OSError) as error:
            source.close()
            if kind not in (Channel.OTHER, Channel.STORAGE):
                raise
            # Anybody may connect and say something, or nothing. A source whose channel this was sees it end.
            _log.warning("a further connection was closed: %s", error)
            return
        self.channels.append(kind)
        pump = Pump(source, destination, lambda _: None)
        with self._lock:
            self._pumps.append((kind, pump))
        pump.start()

    def _accept_extras(self, listeners: Sequence[socket.socket], threads: Iterable[threading.Thread]) -> None:
        while any(thread.is_alive() for thread in threads):
            connection = self._door.accept(listeners, _SILENCE)
            if connection is None:
                self._heed_interrupt()
                continue
            if self._storage.has_port_of(connection):
                self._open_extra(connection, Channel.STORAGE)
                continue
            first = first_bytes(connection, _SILENCE)
            try:
                kind = Channel.OTHER if self._unread else channel_of(first or b"")
            except UnsupportedError as stranger:
                # Not the source of this migration: its main channel is none of these.
                _log.warning("a further connection was closed: %s", stranger)
                first = None
            if first is None or kind is Channel.MAIN:
                connection.close()
                continue
            self._open_extra(connection, kind)

    def _finish(self, threads: Iterable[threading.Thread]) -> None:
        """Wait for the threads, then close what is open."""
        for thread in threads:
            while thread.is_alive():
                self._heed_interrupt()
                thread.join(_SILENCE)
        self._end_watch()
        good = self.session.outcome in (Outcome.COMPLETED, Outcome.SENT)
        late = time.monotonic() + self._waits.linger
        for _, pump in self._pumps:
            if not good or not pump.join(max(0.0, late - time.monotonic())):
                pump.cut()
                pump.join(self._waits.linger)
        for end in (self._source, self._destination, self._door):
            if end is not None:
                end.close()

    # --- source to destination -----------------------------------------------------------------

    def _pass_forward(self, line: Line) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        try:
            while count := line.read(line.source, self._room(buffer)):
                data = buffer[:count]
                if self._looker.pass_pages(data):
                    if self.session.phase is Phase.ENDED or not line.send(line.destination, data):
                        break
                elif not self._deliver(line, self._looker.receive_data(data)):
                    break
            else:
                # A stream that ends too early is the source's way to cancel.
                with contextlib.suppress(TruncatedError):
                    self._deliver(line, self._looker.receive_eof())
                self._perform(self.session.source_ended)
        except DeadlineError as error:
            self._perform(functools.partial(self.session.unanswered, error))
        except QmpfilterError as error:
            # Only here is it certain how far the destination has read.
            self._stop(error, outcome_of(error), between_sections=self._looker.between_sections)
        except OSError:
            # The source is gone: for the migration the same as if it had ended it.
            self._perform(self.session.source_ended)
        except Exception as error:
            self._stop(BugError(f"{type(error).__name__} while the stream was read: {error}"))
            _log.exception("forward")
        self._drain(line.source, buffer)

    def _room(self, buffer: memoryview) -> memoryview:
        """How much to take at once.

        A source without a return path believes that all is well when it got rid of its last byte. So until it is
        known that it has one, little is read, and little can lie in buffers: a source that is refused then has
        not sent its guest's state.
        """
        self._wide = self._wide or self._looker.admitted
        return buffer if self._wide else buffer[:_FIRST]

    def _deliver(self, line: Line, pieces: Iterable[Piece]) -> bool:
        """False if nothing more can be delivered: the backward thread then tells why."""
        began = time.monotonic()
        try:
            for piece in pieces:
                # Before the destination has it, and may answer.
                self._heed_return_path()
                self._heed_tail()
                if piece.commit:
                    with self._lock:
                        if self.session.phase is Phase.STREAMING:
                            self._end_watch()
                            self.session.committed(postcopy=self._looker.postcopy)
                            line.moved()
                            self._note("committed")
                            self.times["tail"] = time.monotonic() - (self._tail_began or began)
                if self.session.phase is Phase.ENDED:
                    return False
                if not line.send(line.destination, piece.data):
                    return False
        finally:
            # Also when what came with the request is a reason to stop: the source waits for SHUT all the same.
            self._heed_return_path()
        self._heed_tail()
        return True

    def _heed_tail(self) -> None:
        """When the tail has begun the guest stands still: whatever this thread then waits for, that has an end."""
        begun = self._tail_began is not None
        if begun or not self._looker.holding or self.session.phase is not Phase.STREAMING:
            return
        self._tail_began = time.monotonic()
        self._note("tail")
        if self._watch is not None:
            self._watch.begin()

    def _heed_return_path(self) -> None:
        if self._looker.return_path and not self.session.return_path:
            with self._lock:
                self.session.return_path_opened()
            self._note("return path")

    def _drain(self, source: socket.socket, buffer: memoryview) -> None:
        """Read and drop what the source still sends, so that what was written to it arrives.

        One that waits for no answer must rather see its connection break.
        """
        if not self.session.return_path:
            return
        # Until it has ended the backward thread has deadlines of its own.
        deadline: Deadline | None = None
        with contextlib.suppress(OSError, HostError):
            while True:
                if deadline is None and self.session.phase is Phase.ENDED:
                    deadline = Deadline(self._waits.linger, "the end of the migration")
                source.settimeout(_SILENCE if deadline is None else deadline.remaining())
                with contextlib.suppress(TimeoutError):
                    if not source.recv_into(buffer):
                        return

    # --- destination to source -----------------------------------------------------------------

    def _pass_back(self, line: Line) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        parser: ReturnPathParser | None = ReturnPathParser()
        untold = bytearray()
        error: OSError | None = None
        try:
            while count := line.read(line.destination, buffer):
                untold += buffer[:count]
                try:
                    if parser is not None:
                        parser.receive_data(buffer[:count])
                        self._return(line, parser, untold)
                        continue
                except StreamError as damage:
                    unread: QmpfilterError = damage
                except Exception as failed:
                    unread = BugError(f"{type(failed).__name__} while the return path was read: {failed}")
                    _log.exception("backward")
                if parser is not None:
                    parser = None
                    self._perform(functools.partial(self.session.return_path_unreadable, unread))
                if self.session.phase is Phase.ENDED:
                    return
                self._say(line, bytes(untold))
                untold.clear()
        except OSError as broken:
            error = broken
        except DeadlineError as late:
            self._perform(functools.partial(self.session.unanswered, late))
            return
        # Whoever was sending may have heard first that the connection broke, and then it is told to nobody again.
        self._perform(lambda: self.session.destination_ended(error or line.broken))

    def _return(self, line: Line, parser: ReturnPathParser, untold: bytearray) -> None:
        """Pass on what was understood, and take it from `untold`.

        :raises StreamError: the rest is no return path
        """
        while not isinstance(event := parser.next_event(), NeedData):
            del untold[: len(event.raw)]
            with self._lock:
                wanted = self.session.returned(event)
                if self.session.answered and "answered" not in self.moments:
                    self._note("answered")
            if wanted:
                self._say(line, event.raw)

    def _say(self, line: Line, data: bytes | memoryview) -> None:
        # A source that is gone is the forward thread's to notice.
        with self._to_source:
            if line.send(line.source, data):
                self.backward += len(data)

    def _heed_interrupt(self) -> None:
        if self._interrupted:
            self._interrupted = False
            self._stop(HostError("the relay was interrupted"), Outcome.STOPPED)
            if self.session.phase is Phase.COMMITTED:
                _log.warning("the destination may run the guest already: still waiting for its word")

    # --- endings -------------------------------------------------------------------------------

    def _stop(
        self, cause: QmpfilterError | OSError, outcome: Outcome = Outcome.FAILED, *, between_sections: bool = False
    ) -> None:
        self._perform(lambda: self.session.stopped(cause, outcome, between_sections=between_sections))

    def _perform(self, decide: Callable[[], tuple[Action, ...]]) -> None:
        with self._lock:
            actions = decide()
            if self.session.phase is Phase.ENDED and "ended" not in self.moments:
                self._note("ended")
                if self._began is not None:
                    self.times["total"] = time.monotonic() - self._began
        for action in actions:
            with contextlib.suppress(OSError):
                self._act(action)
        if self.session.phase is Phase.ENDED:
            self._door.wake()

    def _act(self, action: Action) -> None:
        if action is Action.BREAK_DESTINATION and self._destination is not None:
            self._destination.shutdown(socket.SHUT_RDWR)
        elif action is Action.TELL_DESTINATION and self._destination is not None:
            withdraw(self._destination, self.session.reason)
        elif action is Action.END_DESTINATION and self._destination is not None:
            self._destination.shutdown(socket.SHUT_WR)
        elif action is Action.SHUT_SOURCE and self._source is not None:
            with self._to_source:
                self._source.sendall(SHUT_FAILED)
        elif action is Action.CLOSE_SOURCE and self._source is not None:
            self._source.shutdown(socket.SHUT_WR)

    def _note(self, what: str) -> None:
        self.moments[what] = datetime.now(UTC)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()
