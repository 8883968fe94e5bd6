# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter migrate DOMAIN DESTURI`` between two real libvirts."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from qmpfilter.cli.main import EXIT_HOST
from qmpfilter.cli.policy_options import EXIT_STAYED
from tests.lab.hosts import MID, OLD
from tests.lab.inhost.relaying import listens
from tests.lab.inhost.waiting import wait_until
from tests.lab.session import SECONDS, SessionDaemon, guest_of, provide_package, shared_directory

pytestmark = pytest.mark.lab

Pair = tuple[SessionDaemon, SessionDaemon]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """An old libvirt and a newer one, and the package beside each."""
    shared = shared_directory(tmp_path_factory)
    provide_package(shared)
    with SessionDaemon(OLD, shared, "old") as old, SessionDaemon(MID, shared, "mid") as mid:
        yield old, mid


@pytest.fixture
def guest(pair: Pair) -> Iterator[None]:
    """A guest that runs at the old one."""
    with guest_of(*pair):
        yield


def migrate(source: SessionDaemon, desturi: str, *options: str) -> tuple[int, str, str]:
    """Exit status, what was printed, and the errors."""
    done = source.qmpfilter("migrate", "guest", desturi, *options, "--report", f"/shared/{source.name}/report")
    return done.returncode, done.stdout, done.stderr


def report_of(source: SessionDaemon) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((source.directory / "report").read_text())
    return report


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ((), ["main"]),
        (("--p2p",), ["main"]),
        (("--parallel", "--parallel-connections", "3"), ["main", *["multifd"] * 3]),
        (("--p2p", "--persistent", "--undefinesource", "--auto-converge"), ["main"]),
    ],
    ids=["plain", "p2p", "parallel", "persistent"],
)
@pytest.mark.usefixtures("guest")
def test_a_guest_moves(pair: Pair, options: tuple[str, ...], channels: list[str]) -> None:
    old, mid = pair
    # Back as well, once: the newer libvirt is a source, too.
    for source, target in ((old, mid), *([] if options else [(mid, old)])):
        status, out, errors = migrate(source, target.uri, "--live", *options)
        assert status == 0, errors
        assert out.startswith("completed: the destination runs the guest\n")
        assert (source.state("guest"), target.state("guest")) == ("absent", "running")
        report = report_of(source)
        assert (report["outcome"], report["channels"], report["guest_at"]) == ("completed", channels, "destination")
        told = report["libvirt"]
        assert (told["source"]["state"], told["destination"]["state"], told["error"]) == ("absent", "running", "")
        assert told["job"]["downtime"] >= 0


@pytest.mark.usefixtures("guest")
def test_a_guest_moves_through_another_filter(pair: Pair) -> None:
    old, mid = pair
    there = ("tcp:127.0.0.3:49301", "tcp:127.0.0.1:49301", "--report", "/shared/mid/report")
    with mid.running_qmpfilter("relay", f"pair:{there[0]}", *there[1:]) as other:
        wait_until(lambda: listens("127.0.0.3", 49301), SECONDS, "the other filter to listen", 0.1)
        options = ("--relay-at", "tcp:127.0.0.2:49301", "--migrateuri", f"pair:{there[0]}")
        status, _, errors = migrate(old, mid.uri, "--live", *options)
        assert status == 0, errors
        other.process.communicate(timeout=SECONDS)
    assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
    here, told = report_of(old), report_of(mid)
    assert (here["outcome"], here["guest_at"], told["outcome"]) == ("completed", "destination", "completed")
    assert (list(here["pair"]), list(told["pair"])) == (["destination"], ["source"])


@pytest.mark.usefixtures("guest")
def test_a_domains_own_policy_holds_and_travels(pair: Pair) -> None:
    old, mid = pair
    assert old.qmpfilter("policy", "guest", "set", "--mode", "observe", "--accept", "lbr").returncode == 0
    assert old.qmpfilter("policy", "guest").stdout == "guest: mode observe, accept lbr\n"
    status, _, errors = migrate(old, mid.uri, "--live", "--persistent")
    assert status == 0, errors
    assert report_of(old)["mode"] == "observe"
    shown = json.loads(mid.qmpfilter("policy", "guest", "--json").stdout)
    assert shown == {"domain": "guest", "mode": "observe", "verdict": None, "accept": ["lbr"]}
    # As it runs, and as it is defined.
    assert mid.qmpfilter("policy", "guest", "clear").returncode == 0
    for inactive in ((), ("--inactive",)):
        assert "qmpfilter" not in mid.virsh("dumpxml", "guest", *inactive)


@pytest.mark.usefixtures("guest")
def test_what_is_not_done_leaves_the_guest(pair: Pair) -> None:
    old, mid = pair
    nowhere = "qemu+unix:///session?socket=/nowhere"
    status, out, _ = migrate(old, mid.uri, "--live", "--dry-run")
    assert (status, out.partition(";")[0]) == (0, "nothing was done")
    assert "none of the 2 vCPUs uses SVM" in out
    for desturi, options, expected, said in (
        (
            mid.uri,
            ("--p2p", "--tunnelled"),
            EXIT_HOST,
            "--tunnelled sends the stream within libvirt's own connection",
        ),
        (
            mid.uri,
            ("--relay-at", "tcp:127.0.0.2:49300", "--onward", "tcp:127.0.0.1:1"),
            EXIT_STAYED,
            "cannot connect",
        ),
        (nowhere, (), EXIT_HOST, "'/nowhere': No such file"),
        (nowhere, ("--p2p",), EXIT_STAYED, "'/nowhere': No such file"),
        (old.uri, (), EXIT_HOST, "it cannot go there"),
    ):
        status, out, errors = migrate(old, desturi, "--live", *options)
        assert (status, said in errors.splitlines()[-1]) == (expected, True), errors
        assert (old.state("guest"), mid.state("guest")) == ("running", "absent")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle(pair: Pair, number: signal.Signals) -> None:
    old, mid = pair
    with guest_of(*pair, kind="full"):
        options = ("--live", "--bandwidth", "1", "--report", "/shared/old/report")
        with old.running_qmpfilter("migrate", "guest", mid.uri, *options) as running:
            assert running.process.stderr is not None
            assert any(line.startswith("streaming") for line in running.process.stderr)
            running.signal(number)
            out, errors = running.process.communicate(timeout=SECONDS)
        assert running.process.returncode == EXIT_STAYED, errors
        assert "reason: the operator stopped it" in out
        assert (old.state("guest"), mid.state("guest")) == ("running", "absent")
        assert report_of(old)["guest_at"] == "source"
