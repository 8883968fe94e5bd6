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
from tests.lab.session import SessionDaemon, guest_of, provide_package, shared_directory

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
def test_there_and_back(pair: Pair, options: tuple[str, ...], channels: list[str]) -> None:
    old, mid = pair
    for source, target in ((old, mid), (mid, old)):
        status, out, errors = migrate(source, target.uri, "--live", *options)
        assert status == 0, errors
        assert out.startswith("completed: the destination runs the guest\n")
        assert (source.state("guest"), target.state("guest")) == ("absent", "running")
        report = report_of(source)
        assert (report["outcome"], report["channels"], report["guest_at"]) == ("completed", channels, "destination")
        told = report["libvirt"]
        assert (told["source"]["state"], told["destination"]["state"], told["error"]) == ("absent", "running", "")
        assert told["job"]["downtime"] >= 0
