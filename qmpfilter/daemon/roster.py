# SPDX-License-Identifier: GPL-2.0-or-later
"""The sessions that run, each with a journal that outlives the daemon.

``RUNTIME/sessions/ID.journal`` is made with the session's :class:`~qmpfilter.daemon.sessions.Origin`; its worker
appends how far it is. It is removed when the session has a report. ``ID.log`` is what the worker wrote to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from qmpfilter.daemon.config import Config
from qmpfilter.daemon.reports import Reports, is_name, new_name
from qmpfilter.daemon.sessions import Origin, Session, read_journal
from qmpfilter.daemon.workers import Worker, start_of
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import Policy
from qmpfilter.relay.address import QMP, Listening, PairAddress, TcpAddress, listened_at
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.order import Order
from qmpfilter.relay.pair import Pairing
from qmpfilter.relay.session import STOPPED

__all__ = ["Bound", "Roster", "Wanted"]

_log: Final = logging.getLogger(__name__)

_READY_SECONDS: Final = 30.0
_MOST_LOG_LINES: Final = 50


@dataclass(frozen=True, slots=True)
class Bound:
    """Sockets that listen already; who made them closes them.

    :param shown: where, in words
    """

    shown: str
    sockets: tuple[socket.socket, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A session that is to be.

    :param listen: where its source comes: an address, or sockets; None if it is told to migrate over QMP
    :param connect: an address, or ``qmp:`` and a path: what :class:`~qmpfilter.relay.order.Order` takes
    :param asked_by: the user and process that ask for it
    :param qmp: the source's QMP socket, empty if it is not to be spoken with
    :param session: its name, empty for a new one
    :param name: of the domain, empty where it is not known
    :param uuid: of the domain, empty where it is not known
    :param keep_records: svm2 records of a guest that arrives are kept as files
    :param redirected: see :class:`~qmpfilter.daemon.sessions.Origin`
    :param storage: see :class:`~qmpfilter.relay.order.Order`
    """

    listen: Listening | Bound | None
    connect: str
    policy: Policy
    waits: Waits
    asked_by: str
    qmp: str = ""
    read_vmcb12: bool = True
    session: str = ""
    name: str = ""
    uuid: str = ""
    keep_records: bool = False
    redirected: int = 0
    storage: str = ""
    pairing: Pairing = field(default_factory=Pairing)


class Roster:
    """The running sessions, and what becomes of them.

    :param told: is given the report of each session that ends
    :ivar config: replaced when the daemon reads it again; running sessions keep what they began with
    :ivar sessions: those that run, by name
    :raises HostError: the runtime directory cannot be used
    """

    def __init__(
        self, config: Config, reports: Reports, told: Callable[[Mapping[str, Any]], None] = lambda _: None
    ) -> None:
        self._told = told
        self.config = config
        self.sessions: dict[str, Session] = {}
        self._directory = config.runtime / "sessions"
        self._reports = reports
        self._workers: dict[str, Worker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._unwritten: dict[str, dict[str, Any]] = {}
        self._starting = 0
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HostError(f"{self._directory}: {error.strerror or error}") from error

    def adopt(self) -> None:
        """Take up what earlier daemons began: follow what still runs, and account for what does not."""
        # A log without a journal is of a worker that got no order.
        for path in sorted(self._directory.glob("*.log")):
            if is_name(path.stem) and not self._journal(path.stem).exists():
                self._remove(path.stem)
        for path in sorted(self._directory.glob("*.journal")):
            if not is_name(path.stem):
                continue
            origin, events = read_journal(_lines(path))
            if origin is None:
                # That daemon ended before it gave the order, and so the worker did.
                self._remove(path.stem)
                continue
            session = Session(origin, attached=False)
            for event in events:
                session.hear(event)
            worker = Worker.adopt(origin.pid, origin.pid_start)
            if worker is None:
                self._conclude(session, "ended without a report")
            else:
                _say(logging.INFO, origin.session, f"still runs, in process {origin.pid}")
                self._follow(session, worker)

    async def start(self, wanted: Wanted) -> Session:
        """Begin a session: it listens when this returns.

        :raises HostError: there are too many, the address cannot be listened on, or the worker does not come up
        """
        if len(self.sessions) + self._starting >= self.config.most_sessions:
            raise HostError(f"{self.config.most_sessions} sessions run already, and max_sessions allows no more")
        self._starting += 1
        try:
            if wanted.listen is None:
                session, ready = await self._begin(wanted, f"{QMP}{wanted.qmp}", [])
            elif isinstance(wanted.listen, Bound):
                session, ready = await self._begin(wanted, wanted.listen.shown, wanted.listen.sockets)
            else:
                with await self._listen(wanted.listen) as listener:
                    session, ready = await self._begin(wanted, listened_at(wanted.listen, listener), [listener])
        finally:
            self._starting -= 1
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await ready
        except TimeoutError:
            self.stop(session.origin.session, "its worker was not ready in time")
            raise HostError(f"the worker of {session.origin.session} was not ready in time") from None
        return session

    def stop(self, name: str, reason: str = STOPPED) -> None:
        """Ask a session to end: before the commit point the guest stays at the source, after it nothing changes.

        :param reason: one sentence, for its report
        :raises HostError: it does not run
        """
        if name not in self._workers:
            ended = self.report(name) is not None
            raise HostError(f"session {name} has ended" if ended else f"there is no session {name}")
        self._workers[name].stop(reason)

    def is_free(self, name: str) -> bool:
        """A session may be named so: it is a name, and no session has it or had it."""
        return is_name(name) and name not in self.sessions and self.report(name) is None

    def report(self, name: str) -> dict[str, Any] | None:
        """That of a session that has ended, None if there is none.

        :raises HostError: it cannot be read
        """
        if not is_name(name):
            return None
        return self._unwritten.get(name) or self._reports.read(name)

    def running(self) -> list[Session]:
        """Those that run, the newest first, and up to date."""
        for session in self.sessions.values():
            if not session.attached:
                for event in read_journal(_lines(self._journal(session.origin.session)))[1]:
                    session.hear(event)
        return sorted(self.sessions.values(), key=lambda session: session.origin.session, reverse=True)

    def ended(self) -> Iterator[dict[str, Any]]:
        """Reports of those that do not, the newest first; those that cannot be read are passed over."""
        for name in sorted({*self._reports.names(), *self._unwritten} - self.sessions.keys(), reverse=True):
            with contextlib.suppress(HostError):
                report = self.report(name)
                if report is not None:
                    yield report

    async def wait(self, seconds: float) -> None:
        """Until no session runs, or so long."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=seconds)

    async def close(self) -> None:
        """Leave the workers to themselves."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one session ---------------------------------------------------------------------------

    @staticmethod
    async def _listen(address: Listening) -> socket.socket:
        # A name is looked up, which takes time; a path sets the process's umask, which only one may do at once.
        inner = address.inner if isinstance(address, PairAddress) else address
        return await asyncio.to_thread(inner.listen) if isinstance(inner, TcpAddress) else inner.listen()

    async def _begin(
        self, wanted: Wanted, listen: str, sockets: Sequence[socket.socket]
    ) -> tuple[Session, asyncio.Future[None]]:
        name = wanted.session or new_name()
        worker = await Worker.start(self._log(name))
        try:
            origin = Origin(
                session=name,
                pid=worker.pid,
                pid_start=start_of(worker.pid) or 0,
                began=datetime.now(UTC).isoformat(timespec="milliseconds"),
                listen=listen,
                connect=wanted.connect,
                mode=wanted.policy.mode.value,
                verdict=wanted.policy.enforcement.value,
                asked_by=wanted.asked_by,
                uuid=wanted.uuid,
                redirected=wanted.redirected,
            )
            self._write_origin(origin)
            order = Order(
                session=name,
                listen=origin.listen,
                destination=origin.connect,
                policy=wanted.policy,
                waits=wanted.waits,
                report=self._reports.path(name),
                journal=self._journal(name),
                kill_switch=self.config.kill_switch,
                asked_by=wanted.asked_by,
                audit=self.config.audit_directory if self.config.audit.enabled else None,
                audit_required=self.config.audit.required,
                qmp=wanted.qmp,
                read_vmcb12=wanted.read_vmcb12,
                name=wanted.name,
                uuid=wanted.uuid,
                records=self.config.records_directory(name) if wanted.keep_records else None,
                storage=wanted.storage,
                pairing=wanted.pairing,
            )
            await worker.give(order, sockets)
        except BaseException:
            worker.kill()
            worker.close()
            self._remove(name)
            raise
        session = Session(origin)
        return session, self._follow(session, worker)

    def _follow(self, session: Session, worker: Worker) -> asyncio.Future[None]:
        """What is returned is done when the worker has begun its work, or fails with why it did not."""
        name = session.origin.session
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Who does not wait for it needs not hear of it.
        ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.sessions[name], self._workers[name] = session, worker
        self._tasks[name] = asyncio.create_task(self._attend(session, worker, ready))
        return ready

    async def _attend(self, session: Session, worker: Worker, ready: asyncio.Future[None]) -> None:
        name = session.origin.session
        refused = ""

        def hear(event: Mapping[str, Any]) -> None:
            nonlocal refused
            refused = str(event.get("reason", "")) if event.get("event") == "refused" else refused
            before = session.stage
            session.hear(event)
            if session.stage is not before:
                _say(logging.INFO, name, session.stage.value)
            if "phase" in event and not ready.done():
                ready.set_result(None)

        try:
            await worker.listen(hear)
            session.attached = False
            worker.hang_up()
            how = await worker.ended()
            self._conclude(session, f"refused: {refused}" if refused else how)
            if not ready.done():
                assert session.ending is not None
                ready.set_exception(HostError(session.ending.reason))
        finally:
            worker.close()
            for book in (self.sessions, self._workers, self._tasks):
                book.pop(name, None)

    def _conclude(self, session: Session, how: str) -> None:
        name = session.origin.session
        for event in read_journal(_lines(self._journal(name)))[1]:
            session.hear(event)
        try:
            report = self._reports.read(name)
        except HostError as error:
            _log.error("%s", error)
            report = None
        left = report or session.report
        ending = session.end(left, how)
        self._told(left or session.last_report())
        _say(logging.INFO, name, f"{ending.outcome.value}{f': {ending.reason}' if ending.reason else ''}")
        for line in _lines(self._log(name))[-_MOST_LOG_LINES:]:
            _say(logging.WARNING, name, f"its worker said: {line}")
        if report is None:
            try:
                self._reports.write(name, left or session.last_report())
            except HostError as error:
                _log.error("%s", error)
                self._unwritten[name] = left or session.last_report()
                return
        self._remove(name)
        self._reports.prune(self.config.keep)
        self._prune_records()

    # --- files ---------------------------------------------------------------------------------

    def _journal(self, name: str) -> Path:
        return self._directory / f"{name}.journal"

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def _write_origin(self, origin: Origin) -> None:
        path = self._journal(origin.session)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{origin.to_json()}\n")
        except OSError as error:
            raise HostError(f"{path}: {error.strerror or error}") from error

    def _prune_records(self) -> None:
        """Records of sessions that have no report any more."""
        for path in (self.config.state / "records").glob("*"):
            if is_name(path.name) and path.name not in self.sessions and not self._reports.path(path.name).exists():
                shutil.rmtree(path, ignore_errors=True)

    def _remove(self, name: str) -> None:
        for path in (self._journal(name), self._log(name)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _say(level: int, session: str, what: str) -> None:
    _log.log(level, "session %s: %s", session, what, extra={"session": session})


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
