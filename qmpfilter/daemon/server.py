# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon: its operations and its signals.

SIGHUP reads the configuration again. SIGTERM and SIGINT begin no session any more, wait for those that run up to the
configured time, and end the daemon; a second one ends it at once. Workers that still run then finish alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qmpfilter import __version__
from qmpfilter.cluster.address import open_store
from qmpfilter.cluster.board import Board
from qmpfilter.cluster.decide import Decision
from qmpfilter.daemon.asked import Subject, host_of, read_ends, read_wanted
from qmpfilter.daemon.config import Config, load
from qmpfilter.daemon.control import Control, Request
from qmpfilter.daemon.happenings import Happenings, uuid_of
from qmpfilter.daemon.hooks import Hooks
from qmpfilter.daemon.logs import configure
from qmpfilter.daemon.member import Member
from qmpfilter.daemon.notify import Notifier, inherited_listener
from qmpfilter.daemon.redirects import Redirects
from qmpfilter.daemon.reports import Reports
from qmpfilter.daemon.roster import Roster
from qmpfilter.daemon.switch import KillSwitch
from qmpfilter.errors import HostError, PolicyError
from qmpfilter.filter.policy import Mode
from qmpfilter.libvirt.watch import watch
from qmpfilter.verdict.facts import HostFacts

if TYPE_CHECKING:
    # A library that hosts without metrics need not have.
    from qmpfilter.daemon.metrics import Metrics, MetricsServer

__all__ = ["serve"]

_log: Final = logging.getLogger(__name__)

_ENDED: Final = 100
_METRICS_SECONDS: Final = 15.0
_HAPPENINGS_SECONDS: Final = 10.0
_FIXED: Final = {
    "runtime": "runtime_directory",
    "state": "state_directory",
    "metrics": "metrics",
    "libvirt": "libvirt",
}
"""What of the configuration only a new daemon can do, and its keys."""
_ENDED_KEYS: Final = ("session", "listen", "connect", "mode", "outcome", "reason")


def serve(path: Path | None) -> None:
    """Be the daemon until a signal ends it.

    :param path: of the configuration; None for the default one
    :raises HostError: the configuration or a directory is wrong, or another daemon uses the runtime directory
    """
    asyncio.run(_serve(path))


async def _serve(path: Path | None) -> None:
    config = load(path)
    configure(config.log, os.environ)
    with _locked(config.runtime):
        daemon = _Daemon(path, config)
        await daemon.run()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two daemons do not share a runtime directory."""
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{directory}: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise HostError(f"{directory}: another daemon uses it") from None
    finally:
        os.close(lock)


class _Daemon:
    """One daemon, from its lock to its end."""

    def __init__(self, path: Path | None, config: Config) -> None:
        self._path = path
        self._config = config
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._switch = KillSwitch(config.kill_switch)
        self._member = self._make_member()
        self._reports = Reports(config.state / "sessions")
        self._reports.prune(config.keep)
        self._roster = Roster(config, self._reports, self._ended)
        self._redirects = Redirects()
        self._hooks = Hooks(self._roster, self._mode_here, self._redirects)
        self._metrics = self._make_metrics()
        self._happenings = Happenings()
        self._adding: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._again = asyncio.Event()
        operations = {
            "status": self._status,
            "sessions": self._sessions,
            "show": self._show,
            "stop": self._stop,
            "relay": self._relay,
            "reload": self._reload,
            "off": self._off,
            "on": self._on,
            "hook": self._hooks.answer,
            "explain": self._explain,
        }
        self._notifier = Notifier(os.environ)
        self._control = Control(str(config.socket), operations, inherited_listener(os.environ))

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._heed_end)
        loop.add_signal_handler(signal.SIGHUP, self._heed_reload)
        # Before anything answers or is said to be ready: an address that is taken ends the daemon.
        server = self._serve_metrics()
        if self._member is not None:
            self._member.start()
        self._roster.adopt()
        if self._config.ingress.nft:
            origins = [session.origin for session in self._roster.running()]
            await self._redirects.adopt(origins, self._config.waits.source)
        await self._control.start()
        _log.info("qmpfilter %s answers at %s", __version__, self._config.socket)
        self._notifier.say(READY="1", STATUS="waits for migrations")
        tasks = [
            asyncio.create_task(self._notifier.feed_watchdog()),
            asyncio.create_task(self._write_metrics()),
            asyncio.create_task(self._watch_libvirt()),
            asyncio.create_task(self._redirects.keep()),
        ]
        try:
            await self._stopping.wait()
            self._notifier.say(STOPPING="1", STATUS=f"waits for {len(self._roster.sessions)} sessions to end")
            await self._drain()
        finally:
            for task in (*tasks, *self._adding):
                task.cancel()
            await asyncio.gather(*self._adding, return_exceptions=True)
            if server is not None:
                server.close()
            await self._control.close()
            await self._roster.close()
            await self._redirects.close()
            if self._member is not None:
                await asyncio.to_thread(self._member.close)

    # --- cluster -------------------------------------------------------------------------------

    def _make_member(self) -> Member | None:
        """:raises HostError: the store's address is none, or the state directory cannot be used"""
        cluster = self._config.cluster
        if not cluster.wanted:
            return None
        board = Board(open_store(cluster.store, cluster.access))
        return Member(cluster, board, self._config.state / "cluster", self._switch)

    def _decide(self, member: Member, subject: Subject) -> tuple[Decision, HostFacts | None]:
        return member.decide(
            subject.destination,
            domain=subject.domain,
            off=self._config.kill_switch.exists(),
            configured=self._config.mode_named,
            asked=subject.asked,
            wished=subject.wished,
        )

    def _mode_here(self, domain: str, wished: Mode | None) -> Mode | None:
        """What the cluster allows for a domain that arrives here, None without one. Where it comes from is not known,
        so this host stands for both ends.

        :param wished: the mode of the domain's own policy
        """
        if self._member is None:
            return None
        decision, _ = self._decide(self._member, Subject(self._config.cluster.name, domain, None, wished))
        return decision.mode

    # --- metrics -------------------------------------------------------------------------------

    def _make_metrics(self) -> Metrics | None:
        """:raises HostError: they are wanted, and the library is not there"""
        if not self._config.metrics.wanted:
            return None
        try:
            from qmpfilter.daemon.metrics import Metrics
        except ImportError as error:
            raise HostError(f"metrics: {error}: install qmpfilter[metrics]") from error
        metrics = Metrics(lambda: len(self._roster.sessions), self._config.kill_switch.exists)
        metrics.configured(self._config.policy.mode)
        if (member := self._member) is not None:
            metrics.follow_cluster(lambda: member.age, lambda: member.fallen_back)
        return metrics

    def _serve_metrics(self) -> MetricsServer | None:
        if self._metrics is None or self._config.metrics.listen is None:
            return None
        from qmpfilter.daemon.metrics import MetricsServer

        return MetricsServer(self._config.metrics.listen, self._metrics)

    async def _write_metrics(self) -> None:
        """Now and then, for who reads the file."""
        path = self._config.metrics.textfile
        while self._metrics is not None and path is not None:
            try:
                await asyncio.to_thread(self._metrics.write, path)
            except HostError as error:
                _log.error("metrics: %s", error)
            await asyncio.sleep(_METRICS_SECONDS)

    def _ended(self, report: Mapping[str, Any]) -> None:
        self._hooks.ended(report)
        self._redirects.ended(report)
        if self._member is not None:
            self._member.count(report, host_of(str(report.get("connect", ""))))
        if self._metrics is not None:
            self._metrics.count(report)
        if self._config.libvirt.uri and uuid_of(report):
            task = asyncio.create_task(self._add_happenings(report))
            self._adding.add(task)
            task.add_done_callback(self._adding.discard)

    # --- libvirt -------------------------------------------------------------------------------

    async def _watch_libvirt(self) -> None:
        if self._config.libvirt.uri:
            await watch(self._config.libvirt.uri, self._happenings.hear)

    async def _add_happenings(self, report: Mapping[str, Any]) -> None:
        """What libvirt told of a migration becomes a part of its report; at the daemon's end, what it told so far."""
        name = report["session"]
        try:
            await self._happenings.wait(report, _HAPPENINGS_SECONDS)
        finally:
            told = self._happenings.told(report)
            try:
                written = self._reports.read(name)
                if written is not None and told is not None:
                    self._reports.write(name, {**written, "libvirt": told})
            except HostError as error:
                _log.error("%s", error)

    # --- signals -------------------------------------------------------------------------------

    def _heed_end(self) -> None:
        (self._again if self._stopping.is_set() else self._stopping).set()

    def _heed_reload(self) -> None:
        try:
            self._load()
        except HostError as error:
            _log.error("the configuration stays as it was: %s", error)

    async def _drain(self) -> None:
        """Wait for what runs; a second signal ends the wait."""
        running = len(self._roster.sessions)
        if running:
            _log.info("waiting up to %g s for %d sessions", self._config.drain, running)
        waits = [asyncio.create_task(one) for one in (self._roster.wait(self._config.drain), self._again.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        left = sorted(self._roster.sessions)
        if left:
            _log.warning("left to finish alone: %s", ", ".join(left))

    def _load(self) -> Config:
        """:raises HostError: the new configuration is wrong, or asks for what only a new daemon can do"""
        self._notifier.reloading()
        try:
            return self._take(load(self._path))
        finally:
            self._notifier.say(READY="1")

    def _take(self, config: Config) -> Config:
        for what, key in _FIXED.items():
            if getattr(config, what) != getattr(self._config, what):
                raise HostError(f"{key} cannot change while the daemon runs: restart it")
        self._config = self._roster.config = config
        if self._metrics is not None:
            self._metrics.configured(config.policy.mode)
        _log.info("configuration read: %s", ", ".join(map(str, config.files)) or "defaults")
        return config

    # --- operations ----------------------------------------------------------------------------

    async def _status(self, request: Request) -> dict[str, Any]:
        request.end()
        config = self._config
        return {
            "version": __version__,
            "pid": os.getpid(),
            "began": self._began,
            "config": [str(file) for file in config.files],
            "runtime": str(config.runtime),
            "state": str(config.state),
            "mode": config.policy.mode.value,
            "verdict": config.policy.enforcement.value,
            "max_sessions": config.most_sessions,
            "running": len(self._roster.sessions),
            "draining": self._stopping.is_set(),
            "off": config.kill_switch.exists(),
            "cluster": None if self._member is None else self._member.as_json(),
        }

    async def _sessions(self, request: Request) -> dict[str, Any]:
        limit = request.count("limit", _ENDED)
        request.end()
        ended = [{key: report.get(key) for key in _ENDED_KEYS} for report in islice(self._roster.ended(), limit)]
        return {"running": [session.as_json() for session in self._roster.running()], "ended": ended}

    async def _show(self, request: Request) -> dict[str, Any]:
        name = request.text("session")
        request.end()
        for session in self._roster.running():
            if session.origin.session == name:
                return {"running": session.as_json()}
        report = self._roster.report(name)
        if report is None:
            raise HostError(f"there is no session {name}")
        return {"report": report}

    async def _stop(self, request: Request) -> dict[str, Any]:
        name = request.text("session")
        request.end()
        self._roster.stop(name)
        return {}

    async def _relay(self, request: Request) -> dict[str, Any]:
        if self._stopping.is_set():
            raise HostError("the daemon is about to end and begins no session")
        ends = read_ends(request)
        subject = Subject.of(request, ends.connect)
        decision: Decision | None = None
        mode, known = subject.asked or subject.wished or self._config.policy.mode, None
        if self._member is not None:
            decision, known = self._decide(self._member, subject)
            mode = decision.mode
        # Files are read, and of a pair's destination its host is looked at.
        wanted = await asyncio.to_thread(read_wanted, request, self._config, ends, subject.domain or "", mode, known)
        session = await self._roster.start(wanted)
        name = session.origin.session
        answer = {"session": name, "listen": session.origin.listen}
        if self._member is None or decision is None:
            return answer
        self._member.began(name, subject.destination)
        _log.info("session %s: mode %s: %s", name, decision.mode, decision.why, extra={"session": name})
        return {**answer, "mode": decision.mode.value, "why": decision.why}

    async def _explain(self, request: Request) -> dict[str, Any]:
        subject = Subject.of(request, "")
        request.end()
        if self._member is None:
            raise HostError("this host is in no cluster: the configuration's [cluster] names no store")
        decision, _ = self._decide(self._member, subject)
        return {
            "mode": decision.mode.value,
            "why": decision.why,
            "steps": [{"who": step.who, "most": step.most.value, "why": step.why} for step in decision.steps],
        }

    async def _reload(self, request: Request) -> dict[str, Any]:
        request.end()
        return {"config": [str(file) for file in self._load().files]}

    async def _off(self, request: Request) -> dict[str, Any]:
        request.end()
        self._switch.take()
        return {"off": True}

    async def _on(self, request: Request) -> dict[str, Any]:
        request.end()
        if self._member is not None and (why := self._member.off_for_all):
            raise PolicyError(f"{why}: 'qmpfilter on --all' ends that")
        self._switch.release()
        return {"off": False}
