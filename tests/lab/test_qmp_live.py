# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter migrate` and `qmpfilter pipe` with real QEMUs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qmpfilter.cli.main import EXIT_HOST
from qmpfilter.cli.policy_options import EXIT_STAYED, EXIT_VETOED
from qmpfilter.qmp.source import Source
from tests.helpers.daemon import DaemonProcess
from tests.lab.inhost.machine import Machine
from tests.lab.inhost.waiting import wait_until
from tests.lab.live import RelayProcess, machine, qemu_in, runs
from tests.lab.qmp_proxy import QmpProxy

pytestmark = pytest.mark.lab

SECONDS = 60.0
NOTICED = 1.2  # longer than a follower's pause
TOUCHED = ("events", "return-path")
SLOW = {"max_bandwidth": 1 << 20, "downtime_limit": 1}
"""A migration that goes on until it is told otherwise: the guest changes its pages faster than they are sent."""
FAST = {"max_bandwidth": 1 << 30, "downtime_limit": 300}
# A host that supports no feature at all refuses the EFER of any guest.
POOR_HOST = {"schema": "qmpfilter.host/1", "kernel": {"version": "7.3.4"}, "cpu": {"supported_cpuid": []}}


class Pair(NamedTuple):
    """A source that runs its guest and a destination that waits; each has a second QMP socket, `qmp` with a name."""

    directory: Path
    source: Machine
    destination: Machine

    def qmp(self, end: Machine) -> Path:
        return self.directory / f"{end.name}.second"

    @contextmanager
    def migrating(self, *options: str, source: Path | None = None) -> Iterator[subprocess.Popen[str]]:
        """`qmpfilter migrate`, with its report."""
        argv = ["migrate", "--qmp", str(source or self.qmp(self.source)), *options, "--report", str(self._report)]
        with subprocess.Popen(
            [sys.executable, "-m", "qmpfilter", *argv], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def migrate(self, *options: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        with self.migrating(*options) as process:
            out, errors = process.communicate(timeout=SECONDS)
        return process.returncode, out, errors

    @property
    def report(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._report.read_text())
        return told

    @property
    def _report(self) -> Path:
        return self.directory / "report"

    @property
    def to_qmp(self) -> str:
        return f"qmp:{self.qmp(self.destination)}"

    def poor_host(self) -> str:
        (self.directory / "host.json").write_text(json.dumps(POOR_HOST))
        return str(self.directory / "host.json")

    def wait_for_ram(self) -> None:
        """Until the migration is in the midst of memory."""
        wait_until(lambda: status(self.destination) == "active", SECONDS, "an active migration", 0.02)
        time.sleep(0.3)

    def check_that_the_source_goes_on(self) -> None:
        wait_until(lambda: runs(self.source), SECONDS, "the source to go on", 0.05)
        self.source.wait_for_rounds({0: self.source.progress().rounds[0][-1]})
        assert not runs(self.destination)

    def check_that_the_destination_goes_on(self) -> None:
        reached = self.source.progress().rounds[0][-1]
        self.destination.wait_for_rounds({0: reached})
        assert not runs(self.source)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    def second(name: str) -> list[str]:
        return ["-qmp", f"unix:{tmp_path / name}.second,server=on,wait=off"]

    with (
        qemu_in(tmp_path),
        machine(tmp_path, "source", extra=second("source")) as source,
        machine(tmp_path, "destination", incoming=True, extra=second("destination")) as destination,
    ):
        source.wait_for_rounds({0: 0})
        yield Pair(tmp_path, source, destination)


def status(of: Machine) -> str:
    return str(of.qmp.command("query-migrate").get("status", ""))


def capabilities(of: Machine) -> dict[str, bool]:
    told = of.qmp.command("query-migrate-capabilities")
    return {one["capability"]: one["state"] for one in told if one["capability"] in TOUCHED}


# --- migrate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("over_qmp", [True, False])
def test_migrate(over_qmp: bool, pair: Pair) -> None:
    target = pair.to_qmp
    if not over_qmp:
        target = f"unix:{pair.directory / 'incoming'}"
        pair.destination.qmp.command("migrate-incoming", uri=target)
    exit_status, out, errors = pair.migrate(target)
    assert (exit_status, out.splitlines()[0]) == (0, "completed: the destination runs the guest"), errors
    pair.check_that_the_destination_goes_on()
    report = pair.report
    assert (report["outcome"], report["return_path"], report["channels"]) == ("completed", True, ["main"])
    source, destination = report["source"], report["destination"]
    assert (source["migration"]["status"], source["guest"]) == ("completed", "postmigrate")
    assert source["migration"]["milliseconds"]["total"] >= source["migration"]["milliseconds"]["downtime"] > 0
    assert [event["pass"] for event in source["events"] if event["what"] == "MIGRATION_PASS"][:1] == [1]
    happened = [event["what"] for event in source["events"]]
    assert (happened[0], happened[-1], happened.count("STOP"), happened.count("RESUME")) == (
        "setup",
        "completed",
        1,
        0,
    )
    if over_qmp:
        assert (destination["migration"]["status"], destination["guest"]) == ("completed", "running")
        assert capabilities(pair.destination) == dict.fromkeys(TOUCHED, False)
    else:
        assert destination is None
    assert source["problems"] == []


def test_to_another_filter(pair: Pair) -> None:
    pair.destination.qmp.command("migrate-incoming", uri=f"unix:{pair.directory / 'incoming'}")
    with RelayProcess(pair.directory, kind="pair:unix") as other:
        exit_status, out, errors = pair.migrate(f"pair:unix:{other.address}")
        assert (exit_status, out.splitlines()[0]) == (0, "completed: the destination runs the guest"), errors
        pair.check_that_the_destination_goes_on()
        told = other.report()
        assert told["outcome"] == "completed"
        links = pair.report["pair"], told["pair"]
        assert [list(link) for link in links] == [["destination"], ["source"]]
        assert pair.report["bytes"]["forward"] == told["bytes"]["forward"]


def test_a_veto_and_then_again(pair: Pair) -> None:
    target = f"unix:{pair.directory / 'incoming'}"
    exit_status, out, errors = pair.migrate(pair.to_qmp, "--host", pair.poor_host())
    assert (exit_status, out.splitlines()[0][:6]) == (EXIT_VETOED, "vetoed")
    assert errors.splitlines()[-1].endswith("; at the source the guest runs again")
    pair.check_that_the_source_goes_on()
    assert capabilities(pair.source) == dict.fromkeys(TOUCHED, False)
    report = pair.report
    assert report["source"]["migration"]["status"] in ("failed", "cancelled")
    assert report["source"]["guest"] == "running"
    with machine(pair.directory, "another", incoming=True) as another:
        another.qmp.command("migrate-incoming", uri=target)
        assert pair.migrate(target)[0] == 0
        another.wait_for_rounds({0: pair.source.progress().rounds[0][-1]})
        assert not runs(pair.source)


def test_a_signal_cancels_it(pair: Pair) -> None:
    pair.source.configure([], SLOW)
    with pair.migrating(pair.to_qmp) as process:
        pair.wait_for_ram()
        process.terminate()
        out, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_STAYED, errors
    assert "reason: the operator stopped it" in out
    pair.check_that_the_source_goes_on()
    assert capabilities(pair.source) == dict.fromkeys(TOUCHED, False)


def test_a_signal_cancels_it_while_the_source_pauses_before_the_switch_over(pair: Pair) -> None:
    pair.source.configure(["pause-before-switchover"], {})
    with pair.migrating(pair.to_qmp) as process:
        wait_until(lambda: status(pair.source) == "pre-switchover", SECONDS, "the pause", 0.02)
        process.terminate()
        process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_STAYED
    pair.check_that_the_source_goes_on()
    assert capabilities(pair.source) == dict.fromkeys(TOUCHED, False)


def test_without_a_return_path(pair: Pair) -> None:
    exit_status, _, errors = pair.migrate(pair.to_qmp, "--allow-no-return-path")
    assert exit_status == 0, errors
    pair.check_that_the_destination_goes_on()
    report = pair.report
    assert (report["return_path"], report["guest_at"]) == (False, "destination")
    assert (report["source"]["guest"], report["destination"]["guest"]) == ("postmigrate", "running")


def test_cancelled_at_the_source(pair: Pair) -> None:
    pair.source.configure([], SLOW)
    with pair.migrating(pair.to_qmp) as process:
        pair.wait_for_ram()
        pair.source.qmp.command("migrate_cancel")
        out, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, out.splitlines()[0][:9]) == (EXIT_STAYED, "cancelled")
    assert pair.report["source"]["migration"]["status"] == "cancelled"
    pair.check_that_the_source_goes_on()


@pytest.mark.parametrize("again", [True, False])
def test_a_source_whose_qmp_is_lost(again: bool, pair: Pair) -> None:
    pair.source.configure([], SLOW)
    with (
        QmpProxy(pair.directory / "proxy", pair.qmp(pair.source)) as proxy,
        pair.migrating(pair.to_qmp, source=proxy.path) as process,
    ):
        pair.wait_for_ram()
        if again:
            proxy.cut()
        else:
            proxy.end()
        time.sleep(NOTICED)
        pair.source.qmp.command("migrate-set-parameters", **FAST)
        out, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, out.splitlines()[0][:9]) == (0, "completed"), errors
    pair.check_that_the_destination_goes_on()
    source = pair.report["source"]
    assert source["problems"][0].startswith("the QMP connection was lost")
    assert source["gone"] == (not again)
    assert (source["migration"]["status"] == "completed") == again


def test_a_destination_that_dies(pair: Pair) -> None:
    pair.source.configure([], SLOW)
    with pair.migrating(pair.to_qmp) as process:
        pair.wait_for_ram()
        pair.destination.kill()
        process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_STAYED
    report = pair.report
    assert (report["outcome"], report["source"]["guest"], report["destination"]["gone"]) == (
        "refused",
        "running",
        True,
    )
    wait_until(lambda: runs(pair.source), SECONDS, "the source to go on", 0.05)


def test_settings_that_forbid_it(pair: Pair) -> None:
    pair.source.configure(["multifd"], {})
    exit_status, out, errors = pair.migrate(pair.to_qmp)
    assert (exit_status, out) == (EXIT_HOST, "")
    assert "multifd uses several connections" in errors
    assert status(pair.source) == status(pair.destination) == ""
    pair.check_that_the_source_goes_on()


def test_guest_memory(pair: Pair) -> None:
    """Pages are as QEMU's own dump has them."""
    base, count = 0x100000, 16
    addresses = [base + 4096 * page for page in range(count)]

    async def read() -> dict[int, bytes]:
        source = Source(str(pair.qmp(pair.source)))
        await source.connect()
        try:
            return await source.read_pages(addresses)
        finally:
            await source.close()

    pair.source.qmp.command("stop")
    pages = asyncio.run(read())
    dump = pair.directory / "dump"
    pair.source.qmp.command("pmemsave", val=base, size=count * 4096, filename=str(dump))
    assert b"".join(pages[address] for address in addresses) == dump.read_bytes()
    assert any(pages[base])


# --- pipe ------------------------------------------------------------------------------------------


def pipe(pair: Pair, *options: str) -> None:
    """Begin a migration through `qmpfilter pipe`; its exit status is written to a file."""
    target = f"unix:{pair.directory / 'incoming'}"
    pair.destination.qmp.command("migrate-incoming", uri=target)
    command = f"{sys.executable} -m qmpfilter pipe {target} --report {pair.directory}/report {' '.join(options)}"
    pair.source.qmp.command("migrate", uri=f"exec:exec {command} 2>{pair.directory}/said")


def wait_for_the_end(pair: Pair) -> str:
    wait_until(lambda: status(pair.source) in ("completed", "failed", "cancelled"), SECONDS, "the end", 0.05)
    wait_until((pair.directory / "report").exists, SECONDS, "the report", 0.05)
    return status(pair.source)


def test_pipe(pair: Pair) -> None:
    pair.source.configure(["return-path"], {})
    pipe(pair)
    assert wait_for_the_end(pair) == "completed"
    assert (pair.report["outcome"], pair.report["return_path"]) == ("completed", True)
    pair.check_that_the_destination_goes_on()


def test_pipe_with_a_veto(pair: Pair) -> None:
    pair.source.configure(["return-path"], {})
    pipe(pair, "--host", pair.poor_host())
    assert wait_for_the_end(pair) == "failed"
    assert pair.report["outcome"] == "vetoed"
    pair.check_that_the_source_goes_on()


@pytest.mark.parametrize("allowed", [True, False])
def test_pipe_without_a_return_path(allowed: bool, pair: Pair) -> None:
    pipe(pair, *["--allow-no-return-path"] * allowed)
    assert wait_for_the_end(pair) == ("completed" if allowed else "failed")
    if allowed:
        # The destination may be done before the source has closed its pipe, and then nobody says more.
        assert pair.report["outcome"] in ("sent", "in doubt")
        pair.check_that_the_destination_goes_on()
    else:
        assert "turn the migration capability return-path on" in pair.report["reason"]
        pair.check_that_the_source_goes_on()


def test_pipe_without_a_return_path_with_a_veto(pair: Pair) -> None:
    """So little is read ahead that QEMU still sees its pipe break."""
    pipe(pair, "--allow-no-return-path", "--host", pair.poor_host())
    assert wait_for_the_end(pair) == "failed"
    assert pair.report["outcome"] == "vetoed"
    pair.check_that_the_source_goes_on()


def test_pipe_that_is_cancelled(pair: Pair) -> None:
    """QEMU answers nobody until the silence was noticed."""
    pair.source.configure(["return-path"], SLOW)
    pipe(pair, "--deadline", "idle=2")
    pair.wait_for_ram()
    pair.source.qmp.command("migrate_cancel")
    assert wait_for_the_end(pair) == "cancelled"
    assert "nothing came from the source for 2 s" in pair.report["reason"]
    pair.check_that_the_source_goes_on()


def test_a_daemon_takes_it_over(pair: Pair) -> None:
    with DaemonProcess(pair.directory) as daemon:
        told = daemon.ask("relay", listen=f"qmp:{pair.qmp(pair.source)}", connect=pair.to_qmp)
        report = daemon.report(told["session"])
    assert (report["outcome"], report["guest_at"]) == ("completed", "destination")
    pair.check_that_the_destination_goes_on()


def test_a_daemon_follows_a_source(pair: Pair) -> None:
    incoming, listen = (f"unix:{pair.directory / name}" for name in ("incoming", "listen"))
    for end in (pair.source, pair.destination):
        end.configure([*TOUCHED], {})
    pair.destination.qmp.command("migrate-incoming", uri=incoming)
    with DaemonProcess(pair.directory) as daemon:
        told = daemon.ask("relay", listen=listen, connect=incoming, qmp=str(pair.qmp(pair.source)))
        pair.source.qmp.command("migrate", uri=listen)
        report = daemon.report(told["session"])
    assert report["outcome"] == "completed"
    assert (report["source"]["guest"], report["source"]["problems"]) == ("postmigrate", [])
    assert report["source"]["migration"]["milliseconds"]["downtime"] > 0
    pair.check_that_the_destination_goes_on()
