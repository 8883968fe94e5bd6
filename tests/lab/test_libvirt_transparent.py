# SPDX-License-Identifier: GPL-2.0-or-later
"""``virsh migrate`` with no flag for a filter, between two networks: rules of nftables bring it to the relay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.lab.hosts import MID, OLD
from tests.lab.inhost.waiting import wait_until
from tests.lab.session import SECONDS, SessionDaemon, guest_of, shared_directory

pytestmark = pytest.mark.lab

RULES: Final = Path(__file__).resolve().parents[2] / "examples/nft"
PORT: Final = 49400


def within(network: str, *argv: str) -> list[str]:
    return ["ip", "netns", "exec", network, *argv]


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=SECONDS).stdout


@contextmanager
def two_networks() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them: 10.9.0.1 and 10.9.0.2."""
    names = tuple(f"qmpfilter-{os.getpid()}-{end}" for end in ("a", "b"))
    with ExitStack() as stack:
        for name in names:
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
            run(*within(name, "ip", "link", "set", "lo", "up"))
        run(
            *within(
                names[0], "ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1]
            )
        )
        for number, name in enumerate(names, 1):
            run(*within(name, "ip", "address", "add", f"10.9.0.{number}/24", "dev", "cable"))
            run(*within(name, "ip", "link", "set", "cable", "up"))
        yield names[0], names[1]


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
def relaying(daemon: SessionDaemon, rules: str, report: Path) -> Iterator[subprocess.Popen[str]]:
    """A relay on a daemon's host, and rules that bring migrations to it."""
    assert daemon.network is not None
    run(*within(daemon.network, "nft", "-f", str(RULES / f"{rules}.nft")))
    argv = ["relay", f"tcp:0.0.0.0:{PORT}", "original", "--report", str(report)]
    try:
        with subprocess.Popen(
            within(daemon.network, sys.executable, "-m", "qmpfilter", *argv), stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                listening = f"sport = :{PORT}"
                wait_until(
                    lambda: str(PORT) in run(*within(daemon.network or "", "ss", "-Hltn", listening)),
                    SECONDS, "the relay to listen", 0.05,
                )  # fmt: skip
                yield process
                assert process.wait(SECONDS) == 0
            finally:
                process.kill()
    finally:
        run(*within(daemon.network, "nft", "delete", "table", "inet", f"qmpfilter_{rules}"))


@pytest.mark.parametrize("flags", [(), ("--p2p",), ("--parallel",)], ids=["plain", "p2p", "parallel"])
@pytest.mark.parametrize("ends", [("source",), ("destination",), ("source", "destination")], ids="+".join)
def test_it_needs_no_flags(
    pair: tuple[SessionDaemon, SessionDaemon], tmp_path: Path, ends: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    old, mid = pair
    with guest_of(old, mid):
        with ExitStack() as relays:
            for end in ends:
                relays.enter_context(relaying(old if end == "source" else mid, end, tmp_path / end))
            old.virsh("migrate", "--live", *flags, "guest", mid.uri)
        assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
        for end in ends:
            report = json.loads((tmp_path / end).read_text())
            assert (report["outcome"], report["channels"][0], len(report["vcpus"])) == ("completed", "main", 2)
            assert len(report["channels"]) == (3 if "--parallel" in flags else 1)
