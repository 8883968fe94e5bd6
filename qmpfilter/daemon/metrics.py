# SPDX-License-Identifier: GPL-2.0-or-later
"""Counters for Prometheus: over HTTP at an address, or as a file for node_exporter's textfile collector.

Counted are the sessions that end while this daemon runs; a restart begins again at 0, which Prometheus expects of
counters. No label names a guest, a host or an address: there is no end to those, and reports and the audit log have
them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import MetricsHandler

from qmpfilter import __version__
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import Mode
from qmpfilter.qmp.info import COMPLETED
from qmpfilter.qmp.whereabouts import Whereabouts
from qmpfilter.relay.address import Address
from qmpfilter.relay.channel import Channel
from qmpfilter.relay.session import Outcome
from qmpfilter.saveimage.outfile import OutputFile

__all__ = ["Metrics", "MetricsServer"]

_HOLD: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)
_DOWNTIME: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
_SESSION: Final = (0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
_REQUEST_SECONDS: Final = 10.0


class Metrics:
    """All that is counted.

    :param running: how many sessions run
    :param is_off: the kill switch is on
    """

    def __init__(self, running: Callable[[], int], is_off: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        Info("qmpfilter_build", "What runs.", registry=self.registry).info({"version": __version__})
        active = Gauge("qmpfilter_sessions_active", "Migrations that go on.", registry=self.registry)
        active.set_function(running)
        off = Gauge("qmpfilter_switched_off", "1 while everything passes as it is.", registry=self.registry)
        off.set_function(is_off)
        self._mode = Gauge("qmpfilter_policy_mode", "1 for the configured mode.", ["mode"], registry=self.registry)
        self._sessions = self._counter("sessions", "Migrations that ended.", "outcome", "mode")
        self._bytes = self._counter("bytes", "Bytes that were passed on.", "direction", "channel")
        self._vcpus = self._counter("vcpus", "vCPUs that were looked at.", "found", "outcome")
        self._objections = self._counter("objections", "Reasons of the verdict against a vCPU's state.", "code")
        self._warnings = self._counter("warnings", "Warnings in reports.")
        self._late = self._counter("late", "What would have stopped a migration, had its commit point not passed.")
        self._where = self._counter("guest_at", "Who had the guest in the end, where both QEMUs were asked.", "where")
        self._hold = self._seconds("tail_hold", "From the first byte of device state to the commit point.", _HOLD)
        self._downtime = self._seconds(
            "downtime", "For which the guest stood still, where QEMU was asked.", _DOWNTIME
        )
        self._session = self._seconds("session", "From the source's connection to the end.", _SESSION)
        # Known from the beginning, so that a rate over the first one is right.
        for outcome in Outcome:
            for mode in Mode:
                self._sessions.labels(outcome.value, mode.value)
        for where in Whereabouts:
            self._where.labels(where.value)

    def configured(self, mode: Mode) -> None:
        """The configuration was read."""
        for one in Mode:
            self._mode.labels(one.value).set(one is mode)

    def follow_cluster(self, age: Callable[[], float], fallen_back: Callable[[], bool]) -> None:
        """This host is in a cluster.

        :param age: seconds since its store was heard
        :param fallen_back: nothing is edited, because what is known is too old or cannot be read
        """
        heard = Gauge("qmpfilter_cluster_age_seconds", "Since the cluster's store was heard.", registry=self.registry)
        heard.set_function(age)
        fallen = Gauge(
            "qmpfilter_cluster_fallen_back", "1 while nothing is edited for want of news.", registry=self.registry
        )
        fallen.set_function(fallen_back)

    def count(self, report: Mapping[str, Any]) -> None:
        """A session has ended with this report; one of another version may lack anything."""
        mode = Mode.OFF.value if report.get("switched_off") else str(report.get("mode", "unknown"))
        self._sessions.labels(str(report.get("outcome", "unknown")), mode).inc()
        # Before there were channels in reports, they told of the main one.
        for one in report.get("traffic", [report.get("bytes", {})]):
            for direction in one.keys() & {"forward", "backward"}:
                self._bytes.labels(direction, one.get("channel", Channel.MAIN.value)).inc(one[direction])
        for vcpu in report.get("vcpus", []):
            self._vcpus.labels(vcpu.get("found") or "none", vcpu.get("outcome", "unknown")).inc()
        for verdict in report.get("verdicts", []):
            for reason in verdict.get("reasons", []):
                self._objections.labels(reason.get("code", "unknown")).inc()
        self._warnings.inc(len(report.get("warnings", [])))
        self._late.inc(len(report.get("after_commit", [])))
        if (where := report.get("guest_at")) is not None:
            self._where.labels(where).inc()
        if (held := report.get("seconds", {}).get("tail")) is not None:
            self._hold.observe(held)
        if (total := report.get("seconds", {}).get("total")) is not None:
            self._session.observe(total)
        if (stopped := _downtime(report)) is not None:
            self._downtime.observe(stopped)

    def write(self, path: Path) -> None:
        """As a file, whole or not at all, which all users may read: node_exporter has one of its own.

        :raises HostError: it cannot be written
        """
        try:
            with OutputFile(str(path)) as file:
                file.write(generate_latest(self.registry))
                os.fchmod(file.descriptor(), 0o644)
                file.commit()
        except OSError as error:
            raise HostError(f"{path}: {error.strerror or error}") from error

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"qmpfilter_{name}", text, labels, registry=self.registry)

    def _seconds(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"qmpfilter_{name}_seconds", text, buckets=buckets, registry=self.registry)


def _downtime(report: Mapping[str, Any]) -> float | None:
    """Seconds, of a migration that the source's QEMU calls completed; before that it is what it expects."""
    told = (report.get("source") or {}).get("migration") or {}
    milliseconds = (told.get("milliseconds") or {}).get("downtime")
    return milliseconds / 1e3 if told.get("status") == COMPLETED and milliseconds else None


class MetricsServer:
    """Answers HTTP at an address, in threads of its own.

    :raises HostError: the address cannot be listened on
    """

    def __init__(self, address: Address, metrics: Metrics) -> None:
        class Handler(MetricsHandler.factory(metrics.registry)):  # type: ignore[misc]  # a class made by a function
            timeout = _REQUEST_SECONDS

        self._server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = address.listen()
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_REQUEST_SECONDS)
