# SPDX-License-Identifier: GPL-2.0-or-later
"""``virsh migrate`` to a libvirt of whose configuration nothing was changed: its hook, and rules of nftables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from qmpfilter.daemon.client import ask
from qmpfilter.errors import HostError
from tests.lab.hosts import MID, OLD
from tests.lab.inhost.waiting import wait_until
from tests.lab.networks import run, two_networks, within
from tests.lab.session import (
    SECONDS,
    SessionDaemon,
    assert_same_disk,
    guest_of,
    guest_with_disk,
    provide_package,
    shared_directory,
)

pytestmark = pytest.mark.lab

HOOK: Final = "socket = /shared/mid/run/control.sock\ndeadline = 10\nrequire_daemon = yes\n"
CONFIG: Final = (
    'runtime_directory = "{0}/run"\nstate_directory = "{0}/state"\n[ingress]\nnft = true\nrequired = true\n'
)
WAYS: Final = {
    "plain": (),
    "p2p": ("--p2p",),
    "parallel": ("--parallel", "--parallel-connections", "2"),
    "over IPv6": ("--migrateuri", "tcp://[fd09::2]"),
    "at one address": ("--listen-address", "10.9.0.2"),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SessionDaemon, SessionDaemon]]:
    """An old libvirt, and a newer one with the hook and the daemon, each in a network of its own."""
    shared = shared_directory(tmp_path_factory)
    provide_package(shared)
    # The hosts of these networks have no names.
    host = 'migration_host = "10.9.0.{}"\n'.format
    with (
        two_networks() as (here, there),
        SessionDaemon(OLD, shared, "old", here, host(1)) as old,
        SessionDaemon(MID, shared, "mid", there, host(2), HOOK) as mid,
    ):
        config = mid.directory / "qmpfilter.toml"
        config.write_text(CONFIG.format(mid.directory))
        with mid.running_beside("net_admin", "run", "--config", str(config)) as process:

            def answers() -> bool:
                assert process.poll() is None, process.communicate()[1]
                try:
                    return bool(ask(mid.directory / "run/control.sock", "status", SECONDS)["running"] == 0)
                except HostError:
                    return False

            wait_until(answers, SECONDS, "the daemon", 0.1)
            yield old, mid


def reports(directory: Path) -> list[dict[str, Any]]:
    """Of all sessions, the newest last."""
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]


def next_report(directory: Path, before: int) -> dict[str, Any]:
    """The one that is written next, to so many."""
    wait_until(lambda: len(reports(directory)) > before, SECONDS, "the report", 0.1)
    [report] = reports(directory)[before:]
    return report


def tables(libvirt: SessionDaemon) -> str:
    """Of nftables, in its network."""
    assert libvirt.network is not None
    return run(*within(libvirt.network, "nft", "list", "tables"))


@pytest.mark.parametrize("way", WAYS)
def test_it_needs_no_flags_and_no_configuration(pair: tuple[SessionDaemon, SessionDaemon], way: str) -> None:
    old, mid = pair
    sessions = mid.directory / "state/sessions"
    with guest_of(old, mid):
        before = len(reports(sessions))
        old.virsh("migrate", "--live", *WAYS[way], "guest", mid.uri)
        assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
        report = next_report(sessions, before)
        assert (report["outcome"], report["domain"]["name"], report["warnings"]) == ("completed", "guest", [])
        assert len(report["channels"]) == (3 if way == "parallel" else 1)
        wait_until(lambda: tables(mid) == "", SECONDS, "the rules to go")


def test_its_disk_goes_past_the_filter(pair: tuple[SessionDaemon, SessionDaemon]) -> None:
    old, mid = pair
    sessions = mid.directory / "state/sessions"
    before = len(reports(sessions))
    with guest_with_disk(old, mid):
        old.virsh("migrate", "--live", "--copy-storage-all", "guest", mid.uri)
        assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
        assert_same_disk(old, mid)
        report = next_report(sessions, before)
        assert (report["outcome"], report["channels"]) == ("completed", ["main"])
