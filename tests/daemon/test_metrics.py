# SPDX-License-Identifier: GPL-2.0-or-later
"""What Prometheus reads of a daemon, over HTTP and from a file."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qmpfilter.daemon.metrics import Metrics
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import Mode
from tests.helpers.daemon import DaemonProcess
from tests.helpers.migration import SHUT_OK, STREAM, Ends, asked

SECONDS = 20.0
REPORT = {
    "outcome": "vetoed",
    "mode": "annex",
    "bytes": {"forward": 10, "backward": 3},
    "traffic": [
        {"channel": "main", "forward": 10, "backward": 3},
        {"channel": "multifd", "forward": 50, "backward": 0},
        {"channel": "multifd", "forward": 60, "backward": 0},
    ],
    "guest_at": "source",
    "after_commit": ["one"],
    "source": {"migration": {"status": "completed", "milliseconds": {"downtime": 30}}},
    "vcpus": [{"found": "legacy", "outcome": "converted"}, {"found": None, "outcome": "untouched"}],
    "verdicts": [{"reasons": [{"code": "asid"}, {"code": "asid"}]}],
    "warnings": ["one"],
    "seconds": {"tail": 0.003},
}


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self.host)


def scrape(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.status == 200
    text = answer.read().decode()
    connection.close()
    return text


def samples(text: str) -> dict[str, float]:
    """Values by names and labels, of those that are not 0."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            if sample.value and not sample.name.endswith("_created"):
                found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def written(metrics: Metrics, path: Path) -> dict[str, float]:
    metrics.write(path)
    return samples(path.read_text())


def test_whoever_reads_the_file_may_whatever_the_daemons_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        Metrics(lambda: 2, lambda: True).write(tmp_path / "qmpfilter.prom")
    finally:
        os.umask(before)
    assert [(one.name, one.stat().st_mode & 0o777) for one in tmp_path.iterdir()] == [("qmpfilter.prom", 0o644)]


def test_what_is_counted(tmp_path: Path) -> None:
    metrics = Metrics(lambda: 2, lambda: True)
    metrics.configured(Mode.ANNEX)
    path = tmp_path / "metrics.prom"
    before = written(metrics, path)
    assert before["qmpfilter_sessions_active{}"] == 2
    assert before["qmpfilter_switched_off{}"] == 1
    assert before["qmpfilter_policy_mode{mode=annex}"] == 1
    metrics.count(REPORT)
    # Of a version that tells of no channels, and of a migration that QEMU expects to complete.
    metrics.count({
        "outcome": "completed", "mode": "annex", "switched_off": True, "bytes": {"forward": 7},
        "source": {"migration": {"status": "active", "milliseconds": {"downtime": 300}}},
    })  # fmt: skip
    # Of a version that is not known.
    metrics.count({})
    after = written(metrics, path)
    assert {name: value for name, value in after.items() if name not in before and "_bucket" not in name} == {
        "qmpfilter_sessions_total{mode=annex,outcome=vetoed}": 1,
        "qmpfilter_sessions_total{mode=off,outcome=completed}": 1,
        "qmpfilter_sessions_total{mode=unknown,outcome=unknown}": 1,
        "qmpfilter_bytes_total{channel=main,direction=forward}": 17,
        "qmpfilter_bytes_total{channel=main,direction=backward}": 3,
        "qmpfilter_bytes_total{channel=multifd,direction=forward}": 110,
        "qmpfilter_guest_at_total{where=source}": 1,
        "qmpfilter_late_total{}": 1,
        "qmpfilter_downtime_seconds_count{}": 1,
        "qmpfilter_downtime_seconds_sum{}": 0.03,
        "qmpfilter_vcpus_total{found=legacy,outcome=converted}": 1,
        "qmpfilter_vcpus_total{found=none,outcome=untouched}": 1,
        "qmpfilter_objections_total{code=asid}": 2,
        "qmpfilter_warnings_total{}": 1,
        "qmpfilter_tail_hold_seconds_count{}": 1,
        "qmpfilter_tail_hold_seconds_sum{}": 0.003,
    }
    assert 'qmpfilter_sessions_total{mode="native",outcome="failed"} 0.0' in path.read_text()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        Metrics(lambda: 0, lambda: False).write(tmp_path / "nowhere" / "file")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    config = f'[metrics]\nlisten = "unix:{tmp_path / "metrics"}"\ntextfile = "{tmp_path / "qmpfilter.prom"}"\n'
    with DaemonProcess(tmp_path, config) as process:
        yield process


def test_a_daemon_is_asked(daemon: DaemonProcess, tmp_path: Path) -> None:
    daemon.until((tmp_path / "qmpfilter.prom").exists, "the file")
    with Ends(tmp_path / "incoming") as ends:
        told = daemon.ask("relay", **asked(ends))
        assert samples(scrape(UnixConnection(str(tmp_path / "metrics"))))["qmpfilter_sessions_active{}"] == 1
        ends.dial(told["listen"])
        ends.send(STREAM)
        ends.accept()
        ends.arrive(len(STREAM))
        assert ends.finish() == SHUT_OK
        daemon.report(told["session"])
    found = samples(scrape(UnixConnection(str(tmp_path / "metrics"))))
    assert found["qmpfilter_sessions_total{mode=annex,outcome=completed}"] == 1
    assert found["qmpfilter_vcpus_total{found=legacy,outcome=converted}"] == 1
    assert found["qmpfilter_bytes_total{channel=main,direction=forward}"] == len(STREAM)


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AssertionError, match="cannot listen on"):
            DaemonProcess(tmp_path, f'[metrics]\nlisten = "{address}"\n')
