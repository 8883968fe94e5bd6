# SPDX-License-Identifier: GPL-2.0-or-later
"""One migration in a process of its own, started by :mod:`qmpfilter.qmp.worker` with a number FD.

FD is a stream socket to the daemon. The daemon sends one line, an :class:`~qmpfilter.relay.order.Order`, with the
sockets of the migration (SCM_RIGHTS), and later perhaps ``{"op": "stop", "reason": ...}``. The worker sends lines
back, JSON objects with an ``event``:

- ``phase``: ``phase`` (:class:`~qmpfilter.relay.session.Phase`), once each; also appended to the journal
- ``moved``: ``forward``, ``backward``, ``channels``, now and then while bytes pass
- ``report``: ``report``, at the end; also written to the order's file
- ``refused``: ``reason``; there was no order that could be carried out, and the worker ends

Nothing ever waits for the daemon: what it does not read is dropped, and when it is gone the migration goes on. The
phase ``committed`` is in the journal before the byte that commits is sent, or that byte is not; where everything has
to pass as it is, the order's file then says "in doubt" until the end. SIGTERM and SIGINT are the same as ``stop``;
SIGHUP is nothing.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from qmpfilter.audit.log import AuditLog
from qmpfilter.errors import BugError, HostError, PolicyError
from qmpfilter.filter.gate import Gate, Memory, Piece
from qmpfilter.filter.policy import Mode, Policy
from qmpfilter.relay.address import PAIR, TcpAddress, parse_address, parse_destination, parse_listening
from qmpfilter.relay.deadline import Deadline
from qmpfilter.relay.order import Order
from qmpfilter.relay.pair import Pair
from qmpfilter.relay.records import write_records
from qmpfilter.relay.relay import Relay
from qmpfilter.relay.report import FORMAT, as_json
from qmpfilter.relay.session import STOPPED, Outcome, Phase
from qmpfilter.relay.sparing import Sparing
from qmpfilter.relay.storage import NO_STORAGE, Storage
from qmpfilter.saveimage.outfile import OutputFile

__all__ = ["MOST_SOCKETS", "DaemonLine", "Worker", "serve"]

MOST_SOCKETS: Final = 64

_log: Final = logging.getLogger(__name__)

_CHUNK: Final = 1 << 16
_MOST: Final = 1 << 20
_ORDER_SECONDS: Final = 30.0
_LAST_WORDS_SECONDS: Final = 1.0
_AUDIT_SECONDS: Final = 2.0
_TICK: Final = 0.25
# Its log lies on a file system in memory.
_MOST_SAID: Final = 1 << 18


class DaemonLine:
    """The line to the daemon: sends without waiting, from any thread, and keeps only so much."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._unread = bytearray()
        self.open = True

    def receive_order(self) -> tuple[Order, list[socket.socket]]:
        """The first line, and the sockets that came with it.

        :raises HostError: there is none in time
        :raises BugError: it is no order
        """
        deadline = Deadline(_ORDER_SECONDS, "waiting for the order")
        descriptors: list[int] = []
        while b"\n" not in self._unread:
            self._end.settimeout(deadline.remaining())
            data, more, _, _ = socket.recv_fds(self._end, _CHUNK, MOST_SOCKETS)
            descriptors += more
            if not data or len(self._unread) > _MOST:
                raise BugError("the line ended before it held an order")
            self._unread += data
        self._end.setblocking(False)
        text, _, rest = self._unread.partition(b"\n")
        self._unread = bytearray(rest)
        return Order.from_json(bytes(text)), [socket.socket(fileno=one) for one in descriptors]

    def say(self, event: str, *, droppable: bool = False, **what: Any) -> None:
        """Tell the daemon. What may be dropped is, when it has not read what was said before."""
        with self._lock:
            if not self.open or (droppable and self._unsent):
                return
            text = json.dumps({"event": event, **what}).encode() + b"\n"
            if len(self._unsent) + len(text) <= _MOST:
                self._unsent += text
            self._flush()

    def listen(self, seconds: float) -> list[Any]:
        """What the daemon says within so many seconds."""
        if not self.open:
            time.sleep(seconds)
            return []
        with selectors.DefaultSelector() as selector:
            waiting = selectors.EVENT_WRITE if self._unsent else 0
            selector.register(self._end, selectors.EVENT_READ | waiting)
            ready = selector.select(seconds)
        with self._lock:
            if any(mask & selectors.EVENT_WRITE for _, mask in ready):
                self._flush()
            return self._read() if any(mask & selectors.EVENT_READ for _, mask in ready) else []

    def close(self) -> None:
        """Get rid of the last words within a moment."""
        late = time.monotonic() + _LAST_WORDS_SECONDS
        while self.open and self._unsent and time.monotonic() < late:
            self.listen(_TICK)
        self._end.close()

    def _read(self) -> list[Any]:
        try:
            data = self._end.recv(_CHUNK)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data or len(self._unread) > _MOST:
            self.open = False
            return []
        self._unread += data
        *lines, rest = self._unread.split(b"\n")
        self._unread = bytearray(rest)
        said = []
        for line in lines:
            with contextlib.suppress(ValueError):
                said.append(json.loads(line))
        return said

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._end.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.open = False


class _Journal:
    """How far the migration is, for the daemon and for one that starts later: each phase once, and none after a
    later one, whichever thread comes first."""

    def __init__(self, order: Order, line: DaemonLine) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._untold = list(Phase)
        self._file = os.open(order.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def tell(self, phase: Phase, *, required: bool = False, **more: Any) -> bool:
        """Unless it is over. False if the journal cannot be written.

        :param required: then that is an error
        :raises HostError: it cannot be written
        """
        noted = True
        with self._lock:
            if phase not in self._untold:
                return True
            del self._untold[: self._untold.index(phase) + 1]
            event = {"phase": phase.value, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **more}
            try:
                self._append(json.dumps(event).encode() + b"\n")
            except OSError as error:
                why = f"the journal of this migration cannot be written: {error.strerror or error}"
                if required:
                    raise HostError(why) from error
                _log.warning("%s", why)
                noted = False
        self._line.say("phase", **event)
        return noted

    def _append(self, line: bytes) -> None:
        """All of it or nothing."""
        size = os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Announcing(Gate):
    """A gate that says when the commit point is about to pass."""

    def __init__(
        self, policy: Policy, is_off: Callable[[], bool], memory: Memory | None, *, committing: Callable[[], None]
    ) -> None:
        super().__init__(policy, is_off, memory)
        self._committing = committing

    def receive_data(self, data: memoryview) -> Iterator[Piece]:
        return self._announced(super().receive_data(data))

    def receive_eof(self) -> Iterator[Piece]:
        return self._announced(super().receive_eof())

    def _announced(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if piece.commit:
                self._committing()
            yield piece


class Worker:
    """One order, carried out once.

    :param memory: see :class:`~qmpfilter.filter.gate.Gate`
    :ivar relay: what passes the stream on
    :ivar gate: what looks into it
    :raises HostError: the destination's address is none
    """

    def __init__(self, order: Order, line: DaemonLine, memory: Memory | None = None) -> None:
        self.order = order
        self._line = line
        self._journal = _Journal(order, line)
        self._over = threading.Event()
        self._moved: tuple[int, int, int] = (0, 0, 0)
        self._asked = False
        self._released: int | None = None
        self.relay, self.gate = self._engine(memory)

    def run(self, sockets: list[socket.socket]) -> None:
        """To its end, and its report."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.interrupt())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._journal.tell(Phase.WAITING)
        attendant = threading.Thread(target=self._attend, name="attendant", daemon=True)
        attendant.start()
        try:
            self.carry_out(sockets)
        except Exception:
            # The session has ended all the same, and its report says of what.
            _log.exception("the relay")
        self._over.set()
        attendant.join()
        self._report()

    def carry_out(self, sockets: list[socket.socket]) -> None:
        """The migration; the session has ended when this returns."""
        if self.order.listen.startswith(PAIR):
            listen = parse_listening(self.order.listen)
            sockets = self.pair.welcoming(listen, sockets, lambda: self.relay.session.phase is Phase.WAITING)
        self.relay.run(sockets)

    def told(self) -> dict[str, Any]:
        """What the report says of the migration."""
        return as_json(self.relay, self.gate, self.pair.links)

    def interrupt(self) -> None:
        """A signal asks for the end."""
        self.relay.interrupt()

    def stop(self, reason: str = STOPPED) -> None:
        """The daemon asks for the end."""
        self.relay.stop(HostError(reason), Outcome.STOPPED)

    def make_gate(self, policy: Policy, is_off: Callable[[], bool], memory: Memory | None) -> Gate:
        """A gate whose commit point is in the journal before it passes."""
        return _Announcing(policy, is_off, memory, committing=self._committing)

    def who(self) -> dict[str, Any]:
        """What is known of the guest."""
        order = self.order
        return {"name": order.name, "uuid": order.uuid} if order.uuid else {}

    def domain(self) -> str:
        """The guest's uuid, where it is known."""
        return str(self.who().get("uuid", ""))

    def _committing(self) -> None:
        # What comes too late is not sent, and nothing is to say that it was.
        if self._is_over():
            return
        if not self._asked:
            self._asked = True
            self._released = self._record("released", "")
        as_it_is = self.gate.switched_off or self.order.policy.mode in (Mode.OFF, Mode.OBSERVE)
        if not self._is_over() and not self._journal.tell(Phase.COMMITTED, required=not as_it_is):
            reason = "the worker ended, and had no room to note whether the destination could have started the guest"
            self._write({**self._head(), "format": FORMAT, "outcome": Outcome.IN_DOUBT.value, "reason": reason})

    def _is_over(self) -> bool:
        return self.relay.session.phase is Phase.ENDED

    def _record(self, decision: str, reason: str, **more: Any) -> int | None:
        """In the audit log.

        :returns: the record's number, None if there is none
        :raises PolicyError: it has to be recorded, and cannot
        """
        order, gate = self.order, self.gate
        if order.audit is None:
            return None
        body = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "session": order.session,
            "decision": decision,
            "reason": reason,
            **self.who(),
            "listen": order.listen,
            "connect": order.destination,
            "asked_by": order.asked_by,
            "mode": "off" if gate.switched_off else order.policy.mode.value,
            "edited_vcpus": gate.edits,
            "findings": sorted({found.code for vcpu in gate.vcpus for found in vcpu.findings}),
            **more,
        }
        try:
            return AuditLog(order.audit).append(body, _AUDIT_SECONDS)
        except HostError as error:
            if order.audit_required and decision == "released" and not gate.switched_off:
                raise PolicyError(f"the migration cannot be recorded in the audit log: {error}") from error
            gate.warnings.append(f"Not recorded in the audit log: {error}")
            return None

    def _engine(self, memory: Memory | None) -> tuple[Relay, Gate]:
        order = self.order
        gate = self.make_gate(order.policy, order.kill_switch.exists, memory)
        self.pair = Pair(order.pairing, order.waits, gate, order.kill_switch.exists, self.domain)
        disks = parse_address(order.storage) if order.storage else None
        storage = Storage(disks.connect, disks.port) if isinstance(disks, TcpAddress) else NO_STORAGE
        return self.pair.relay(parse_destination(order.destination), storage), gate

    def _attend(self) -> None:
        """Pass on what happens, and what the daemon wants."""
        while not self._over.is_set():
            for said in self._line.listen(_TICK):
                if isinstance(said, dict) and said.get("op") == "stop":
                    self.stop(str(said.get("reason", STOPPED)))
            self._tell_progress()

    def _tell_progress(self) -> None:
        phase = self.relay.session.phase
        if phase in (Phase.STREAMING, Phase.COMMITTED):
            self._journal.tell(phase)
        channels = [channel.value for channel in self.relay.channels]
        moved = (self.relay.forward, self.relay.backward, len(channels))
        if moved != self._moved:
            self._moved = moved
            self._line.say("moved", droppable=True, forward=moved[0], backward=moved[1], channels=channels)

    def _report(self) -> None:
        session = self.relay.session
        if "committed" not in self.relay.moments:
            corrects = {} if self._released is None else {"corrects": self._released}
            self._record("kept", session.reason, **corrects)
        report = {**self._head(), **self.told(), "records": self._keep_records()}
        self._write(report)
        outcome = None if session.outcome is None else session.outcome.value
        self._journal.tell(Phase.ENDED, outcome=outcome, reason=session.reason)
        self._line.say("report", report=report)

    def _head(self) -> dict[str, Any]:
        """What a report says of the order."""
        order = self.order
        return {
            "session": order.session,
            "listen": order.listen,
            "connect": order.destination,
            "asked_by": order.asked_by,
            "domain": self.who(),
        }

    def _write(self, report: Mapping[str, Any]) -> None:
        try:
            with OutputFile(str(self.order.report)) as file:
                file.write(json.dumps(report, indent=1).encode() + b"\n")
                file.commit()
        except HostError as error:
            _log.error("the report of %s could not be written: %s", self.order.session, error)

    def _keep_records(self) -> list[str]:
        """The files that now hold the svm2 record of each vCPU, if the destination runs the guest."""
        order = self.order
        arrived = self.relay.session.outcome is Outcome.COMPLETED and not self.gate.switched_off
        if order.records is None or not arrived or order.policy.mode is Mode.OBSERVE:
            return []
        try:
            return write_records(order.records, self.gate.vcpus)
        except (HostError, OSError) as error:
            self.gate.warnings.append(f"The svm2 records could not be kept: {error}")
            return []


def serve(number: int, choose: Callable[[Order, DaemonLine, bool], Worker]) -> int:
    """Take one order from the socket with that number, and carry it out.

    :param choose: makes the worker for an order, and is told whether sockets came with it
    """
    logging.basicConfig(format="%(asctime)s %(name)s: %(levelname)s: %(message)s", level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Sparing(_MOST_SAID))
    line = DaemonLine(socket.socket(fileno=number))
    try:
        order, sockets = line.receive_order()
        worker = choose(order, line, bool(sockets))
    except (BugError, HostError, PolicyError, OSError) as error:
        line.say("refused", reason=str(error))
        line.close()
        return 1
    # The process ends with the migration: there is no garbage worth a pause while the guest stands still.
    gc.disable()
    worker.run(sockets)
    line.close()
    return 0
