# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon, its workers, and made-up migrations: whoever is killed, streams go on and the reports are true."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.errors import HostError, PolicyError
from qmpfilter.relay.session import SHUT_FAILED
from tests.helpers.daemon import DaemonProcess
from tests.helpers.migration import PART, SHUT_OK, STREAM, Ends, asked, everything

SECONDS = 20.0


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as process:
        yield process


@pytest.fixture
def daemon(started: DaemonProcess) -> DaemonProcess:
    """The one of all these tests, and its next if that was ended."""
    return started.revived()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    with Ends(tmp_path / "incoming") as both:
        yield both


def begin(daemon: DaemonProcess, ends: Ends, data: bytes, **more: Any) -> str:
    """A session, part of whose stream is at the destination."""
    answer = daemon.ask("relay", **asked(ends, **more))
    ends.dial(answer["listen"])
    ends.send(data)
    ends.accept()
    # Of a stream that does not end there, the last bytes may be held.
    ends.arrive(len(data) if data == STREAM else len(data) // 2)
    return str(answer["session"])


def complete(ends: Ends) -> None:
    """The rest of a stream of which PART was sent."""
    ends.send(STREAM[PART:])
    ends.arrive(len(STREAM))
    assert ends.finish() == SHUT_OK


def running(daemon: DaemonProcess, session: str) -> dict[str, Any]:
    told: dict[str, Any] = daemon.ask("show", session=session)["running"]
    return told


def reaches(daemon: DaemonProcess, session: str, stage: str) -> None:
    daemon.until(lambda: bool(running(daemon, session)["stage"] == stage), f"{session} to be {stage}")


def sessions(daemon: DaemonProcess) -> list[str]:
    return sorted(path.name for path in (daemon.runtime / "sessions").iterdir())


def test_a_migration_completes_and_nobody_listens_any_more(daemon: DaemonProcess, ends: Ends) -> None:
    session = begin(daemon, ends, STREAM)
    reaches(daemon, session, "committed")
    address = running(daemon, session)["listen"]
    assert ends.finish() == SHUT_OK
    report = daemon.report(session)
    with pytest.raises(ConnectionRefusedError):
        ends.dial(address)
    assert (report["session"], report["outcome"], report["edited_vcpus"]) == (session, "completed", 1)
    assert report["bytes"]["forward"] == len(STREAM)
    assert stat.S_IMODE((daemon.state / "sessions" / f"{session}.json").stat().st_mode) == 0o600
    assert sessions(daemon) == []
    assert daemon.ask("sessions")["ended"][0]["session"] == session


def test_a_session_that_is_stopped(daemon: DaemonProcess, ends: Ends) -> None:
    session = begin(daemon, ends, STREAM[:PART])
    daemon.ask("stop", session=session)
    assert everything(ends.source) == SHUT_FAILED
    ends.source.close()
    report = daemon.report(session)
    assert (report["outcome"], report["reason"]) == ("stopped", "the operator stopped it")
    with pytest.raises(HostError, match="has ended"):
        daemon.ask("stop", session=session)


def test_after_the_commit_point_nothing_is_stopped(daemon: DaemonProcess, ends: Ends) -> None:
    session = begin(daemon, ends, STREAM)
    reaches(daemon, session, "committed")
    daemon.ask("stop", session=session)
    assert ends.finish() == SHUT_OK
    assert daemon.report(session)["outcome"] == "completed"


def test_what_the_request_asks_for_goes_before_the_configuration(daemon: DaemonProcess, ends: Ends) -> None:
    facts = {"schema": "qmpfilter.host/1", "kvm": {"parameters": {"kvm_amd": {"nested": "0"}}}}
    session = begin(daemon, ends, STREAM[:PART], mode="legacy", host=facts)
    assert running(daemon, session)["mode"] == "legacy"
    ends.send(STREAM[PART:])
    everything(ends.destination)
    assert everything(ends.source) == SHUT_FAILED
    ends.source.close()
    assert daemon.report(session)["outcome"] == "vetoed"


def test_the_kill_switch(daemon: DaemonProcess, ends: Ends) -> None:
    assert daemon.ask("off") == {"off": True}
    assert daemon.ask("status")["off"] is True
    session = begin(daemon, ends, b"QEVMwhatever this is")
    assert daemon.ask("on") == {"off": False}
    assert ends.finish() == SHUT_OK
    assert daemon.report(session)["switched_off"] is True
    assert not (daemon.runtime / "off").exists()


@pytest.mark.parametrize(("data", "outcome"), [(STREAM[:PART], "failed"), (STREAM, "in doubt")])
def test_a_worker_that_is_killed(daemon: DaemonProcess, ends: Ends, data: bytes, outcome: str) -> None:
    session = begin(daemon, ends, data)
    os.kill(running(daemon, session)["pid"], signal.SIGKILL)
    assert everything(ends.destination) in (b"", data[ends.arrived :])
    assert everything(ends.source) == b""
    report = daemon.report(session)
    assert report["outcome"] == outcome
    assert report["reason"].startswith("the worker was killed by SIGKILL ")
    assert ("before" in report["reason"]) is (outcome == "failed")
    assert sessions(daemon) == []


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"listen": "nowhere"}, "not an address"),
        ({"listen": "unix:relative"}, "an absolute path was expected"),
        ({"listen": "unix:/nowhere/at/all"}, "cannot listen on unix:/nowhere/at/all"),
        ({"mode": "upside-down"}, "one of off, observe, annex"),
        ({"accept": "dr7-guess"}, "accept: a list was expected"),
        ({"allow_no_return_path": 1}, "allow_no_return_path: true or false was expected"),
        ({"deadlines": {"lunch": 3}}, "the request: deadlines.lunch: no such key"),
        ({"deadlines": {"tail": 1e300}}, "the request: deadlines.tail: expected seconds"),
        ({"host": {"schema": "another"}}, "not a file of host facts"),
        ({"lunch": 1}, "not understood: lunch"),
    ],
)
def test_requests_that_are_wrong(daemon: DaemonProcess, ends: Ends, what: dict[str, Any], said: str) -> None:
    with pytest.raises(HostError, match=said):
        daemon.ask("relay", **asked(ends) | what)
    assert daemon.ask("sessions")["running"] == []
    assert sessions(daemon) == []


def test_a_policy_that_contradicts_itself(daemon: DaemonProcess, ends: Ends) -> None:
    with pytest.raises(PolicyError, match="announce"):
        daemon.ask("relay", **asked(ends, mode="native"))


def test_two_daemons_do_not_share_a_directory(daemon: DaemonProcess) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "qmpfilter", "run", "--config", str(daemon.config)],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert (second.returncode, second.stderr) == (3, f"qmpfilter: {daemon.runtime}: another daemon uses it\n")
    assert daemon.ask("status")["running"] == 0


def test_reload(daemon: DaemonProcess, ends: Ends) -> None:
    for change, said in (('mode = "observe"\nlunch = 1\n', "lunch"), ('state_directory = "/x"', "TOML")):
        daemon.config.write_text(daemon.base + change)
        with pytest.raises(HostError, match=said):
            daemon.ask("reload")
        assert daemon.ask("status")["mode"] == "annex"
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: "the configuration stays as it was" in daemon.log(), "the complaint")
    daemon.config.write_text(daemon.base.replace("/state", "/elsewhere"))
    with pytest.raises(HostError, match="cannot change while the daemon runs"):
        daemon.ask("reload")
    daemon.config.write_text(daemon.base + "max_sessions = 1\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: bool(daemon.ask("status")["max_sessions"] == 1), "the new configuration")
    session = begin(daemon, ends, STREAM[:PART])
    with pytest.raises(HostError, match="max_sessions allows no more"):
        daemon.ask("relay", **asked(ends))
    daemon.config.write_text(daemon.base)
    assert daemon.ask("reload") == {"config": [str(daemon.config)]}
    complete(ends)
    daemon.report(session)


@pytest.mark.lab
def test_a_daemon_that_is_killed_and_one_that_takes_up(daemon: DaemonProcess, ends: Ends, tmp_path: Path) -> None:
    with Ends(tmp_path / "second") as second, Ends(tmp_path / "third") as third:
        through = begin(daemon, ends, STREAM[:PART])
        stopped = begin(daemon, second, STREAM[:PART])
        killed = begin(daemon, third, STREAM)
        worker = running(daemon, killed)["pid"]
        daemon.process.kill()
        daemon.process.wait(SECONDS)
        # While there is no daemon, one migration completes and one worker dies.
        complete(ends)
        os.kill(worker, signal.SIGKILL)
        everything(third.source)
        # What it leaves when it is killed between two steps.
        for name in ("20260101T000000-00000000.log", "20260101T000000-00000001.journal"):
            (daemon.runtime / "sessions" / name).touch()
        daemon.start()
        assert daemon.report(through)["outcome"] == "completed"
        assert daemon.report(killed)["outcome"] == "in doubt"
        told = running(daemon, stopped)
        assert (told["attached"], told["stage"]) == (False, "streaming")
        daemon.ask("stop", session=stopped)
        assert everything(second.source) == SHUT_FAILED
        second.source.close()
        assert daemon.report(stopped)["outcome"] == "stopped"
        assert sessions(daemon) == []


@pytest.mark.lab
def test_a_daemon_that_hears_nothing(daemon: DaemonProcess, ends: Ends) -> None:
    session = begin(daemon, ends, STREAM[:PART])
    daemon.process.send_signal(signal.SIGSTOP)
    complete(ends)
    daemon.process.send_signal(signal.SIGCONT)
    assert daemon.report(session)["outcome"] == "completed"


@pytest.mark.lab
def test_a_report_that_cannot_be_written_is_kept(daemon: DaemonProcess, ends: Ends) -> None:
    session = begin(daemon, ends, STREAM[:PART])
    directory, aside = daemon.state / "sessions", daemon.state / "aside"
    directory.rename(aside)
    directory.write_text("")
    complete(ends)
    assert daemon.report(session)["outcome"] == "completed"
    assert f"{session}.json: Not a directory" in daemon.log()
    directory.unlink()
    aside.rename(directory)
    daemon.process.kill()
    daemon.process.wait(SECONDS)
    # What the journal tells is left.
    daemon.start()
    assert daemon.report(session)["outcome"] == "completed"
    assert sessions(daemon) == []


def test_drain(daemon: DaemonProcess, ends: Ends) -> None:
    session = begin(daemon, ends, STREAM[:PART])
    daemon.process.terminate()
    daemon.until(lambda: daemon.ask("status")["draining"], "the daemon to drain")
    with pytest.raises(HostError, match="begins no session"):
        daemon.ask("relay", **asked(ends))
    complete(ends)
    assert daemon.process.wait(SECONDS) == 0
    assert (daemon.state / "sessions" / f"{session}.json").exists()
    assert sessions(daemon) == []
    assert not daemon.socket.exists()


@pytest.mark.lab
def test_a_drain_that_is_cut_short(daemon: DaemonProcess, ends: Ends) -> None:
    session = begin(daemon, ends, STREAM[:PART])
    for _ in range(2):
        daemon.process.terminate()
        daemon.until(lambda: "waiting up to" in daemon.log(), "the daemon to drain")
    assert daemon.process.wait(SECONDS) == 0
    assert f"left to finish alone: {session}" in daemon.log()
    complete(ends)
    daemon.start()
    assert daemon.report(session)["outcome"] == "completed"
