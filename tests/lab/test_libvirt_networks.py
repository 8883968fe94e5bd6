# SPDX-License-Identifier: GPL-2.0-or-later
"""``virsh migrate`` between two networks: to a relay, or with no flag at all where rules of nftables redirect it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.lab.hosts import MID, OLD
from tests.lab.inhost.waiting import wait_until
from tests.lab.networks import run, two_networks, within
from tests.lab.session import (
    SECONDS,
    SessionDaemon,
    assert_same_disk,
    guest_of,
    guest_with_disk,
    shared_directory,
)

pytestmark = pytest.mark.lab

RULES: Final = Path(__file__).resolve().parents[2] / "examples/nft"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SessionDaemon, SessionDaemon]]:
    """An old libvirt and a newer one, each in a network of its own."""
    shared = shared_directory(tmp_path_factory)
    host = 'migration_host = "10.9.0.{}"\n'.format
    with (
        two_networks() as (here, there),
        SessionDaemon(OLD, shared, "old", here, host(1)) as old,
        SessionDaemon(MID, shared, "mid", there, host(2)) as mid,
    ):
        yield old, mid


@contextmanager
def relaying(daemon: SessionDaemon, listen: str, connect: str, report: Path, *options: str) -> Iterator[None]:
    """A relay on a daemon's host, which in the end has completed a migration."""
    assert daemon.network is not None
    argv = [sys.executable, "-m", "qmpfilter", "relay", listen, connect, "--report", str(report), *options]
    listening = within(daemon.network, "ss", "-Hltn", f"sport = :{listen.rpartition(':')[2]}")
    with subprocess.Popen(within(daemon.network, *argv), stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: run(*listening) != "", SECONDS, "the relay to listen", 0.05)
            yield
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


@contextmanager
def redirecting(daemon: SessionDaemon, rules: str, report: Path, *options: str) -> Iterator[None]:
    """The same, with rules that bring every migration to it."""
    assert daemon.network is not None
    run(*within(daemon.network, "nft", "-f", str(RULES / f"{rules}.nft")))
    try:
        with relaying(daemon, "tcp::49400", "original", report, *options):
            yield
    finally:
        run(*within(daemon.network, "nft", "delete", "table", "inet", f"qmpfilter_{rules}"))


EXPLICIT: Final = {
    "source": ("tcp:127.0.0.2:49300", "tcp:10.9.0.2:49300", ("--migrateuri", "tcp://127.0.0.2:49300")),
    "destination": (
        "tcp:10.9.0.2:49300", "tcp:127.0.0.1:49300",
        ("--migrateuri", "tcp://10.9.0.2:49300", "--listen-address", "127.0.0.1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("flags", [("--p2p",), ("--parallel",)], ids=["p2p", "parallel"])
@pytest.mark.parametrize("end", EXPLICIT)
def test_at_an_address(
    pair: tuple[SessionDaemon, SessionDaemon], tmp_path: Path, end: str, flags: tuple[str, ...]
) -> None:
    old, mid = pair
    listen, connect, addressed = EXPLICIT[end]
    with guest_of(old, mid):
        with relaying(old if end == "source" else mid, listen, connect, tmp_path / end):
            old.virsh("migrate", "--live", *flags, *addressed, "guest", mid.uri)
        assert (old.state("guest"), mid.state("guest")) == ("absent", "running")


ENDS: Final = [("source",), ("destination",), ("source", "destination")]


@pytest.mark.parametrize("ends", ENDS, ids="+".join)
def test_redirected_disks_come_too(
    pair: tuple[SessionDaemon, SessionDaemon], tmp_path: Path, ends: tuple[str, ...]
) -> None:
    old, mid = pair
    with guest_with_disk(old, mid), ExitStack() as relays:
        for end in ends:
            relays.enter_context(redirecting(old if end == "source" else mid, end, tmp_path / end, "--disks"))
        old.virsh("migrate", "--live", "--copy-storage-all", "guest", mid.uri)
        assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
        assert_same_disk(old, mid)
    for end in ends:
        assert json.loads((tmp_path / end).read_text())["channels"] == ["storage", "main"]


@pytest.mark.parametrize("flags", [(), ("--p2p",), ("--parallel",)], ids=["plain", "p2p", "parallel"])
@pytest.mark.parametrize("ends", ENDS, ids="+".join)
def test_redirected_it_needs_no_flags(
    pair: tuple[SessionDaemon, SessionDaemon], tmp_path: Path, ends: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    old, mid = pair
    with guest_of(old, mid):
        with ExitStack() as relays:
            for end in ends:
                relays.enter_context(redirecting(old if end == "source" else mid, end, tmp_path / end))
            old.virsh("migrate", "--live", *flags, "guest", mid.uri)
        assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
        for end in ends:
            report = json.loads((tmp_path / end).read_text())
            assert (report["outcome"], report["channels"][0], len(report["vcpus"])) == ("completed", "main", 2)
            assert len(report["channels"]) == (3 if "--parallel" in flags else 1)
