# SPDX-License-Identifier: GPL-2.0-or-later
"""Real migrations through a relay: every kind of stream, and the guest's checksum goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.lab.inhost.machine import Machine
from tests.lab.inhost.waiting import wait_until
from tests.lab.live import RelayProcess, machine, qemu_in, runs

pytestmark = pytest.mark.lab

SECONDS = 120.0
BACK_AND_FORTH = 10
AT_ONCE = 20


class Kind(NamedTuple):
    """How to migrate."""

    name: str
    capabilities: Sequence[str] = ()
    parameters: Mapping[str, Any] = {}
    options: Sequence[str] = ()
    channels: Sequence[str] = ("main",)
    postcopy: bool = False


KINDS = (
    Kind("annex"),
    Kind("observe", options=("--mode", "observe")),
    Kind("off", options=("--mode", "off")),
    Kind("legacy", options=("--mode", "legacy")),
    Kind("multifd", ("multifd",), {"multifd_channels": 2}, channels=("main", "multifd", "multifd")),
    Kind("xbzrle", ("xbzrle",), {"max_bandwidth": 8 << 20, "downtime_limit": 50}),
    Kind("auto-converge", ("auto-converge",), {"max_bandwidth": 16 << 20}),
    Kind(
        "postcopy",
        ("postcopy-ram",),
        {"max_bandwidth": 1 << 20, "max_postcopy_bandwidth": 64 << 20},
        postcopy=True,
    ),
    Kind(
        "postcopy-preempt",
        ("postcopy-ram", "postcopy-preempt"),
        {"max_bandwidth": 1 << 20, "max_postcopy_bandwidth": 64 << 20},
        channels=("main", "other"),
        postcopy=True,
    ),
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with qemu_in(tmp_path):
        yield tmp_path


def migrate(
    directory: Path, source: Machine, destination: Machine, kind: Kind, name: str = "relay"
) -> dict[str, Any]:
    """Migrate through a relay, and return its report."""
    incoming = f"{name}.incoming"
    for end in (source, destination):
        end.configure(["return-path", "events", *kind.capabilities], dict(kind.parameters))
    destination.qmp.command("migrate-incoming", uri=f"unix:{directory / incoming}")
    with RelayProcess(directory, *kind.options, listen=name, connect=incoming) as relay:
        source.qmp.command("migrate", uri=f"unix:{relay.address}")
        if kind.postcopy:
            wait_until(lambda: _sent(source) > 0, SECONDS, "the first page", 0.02)
            source.qmp.command("migrate-start-postcopy")
        wait_until(lambda: _ended(source), SECONDS, "the end of the migration", 0.05)
        return relay.report()


def _sent(source: Machine) -> int:
    sent: int = source.qmp.command("query-migrate").get("ram", {}).get("transferred", 0)
    return sent


def _ended(source: Machine) -> bool:
    info = source.qmp.command("query-migrate")
    if info["status"] == "failed":
        raise RuntimeError(info.get("error-desc", "the migration failed"))
    return bool(info["status"] == "completed")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kind(kind: Kind, directory: Path) -> None:
    with (
        machine(directory, "source") as source,
        machine(directory, "destination", incoming=True) as destination,
    ):
        source.wait_for_rounds({0: 0})
        report = migrate(directory, source, destination, kind)
        reached = source.progress().rounds[0][-1]
        destination.wait_for_rounds({0: reached})
        assert not runs(source)
    assert (report["outcome"], report["reason"], report["warnings"]) == ("completed", "", [])
    assert sorted(report["channels"]) == sorted(kind.channels)
    before, after = report["tail_sha256"].values()
    assert before == after
    assert report["return_path"] == (kind.name != "off")


def test_back_and_forth(directory: Path) -> None:
    with contextlib.ExitStack() as running:
        here = running.enter_context(machine(directory, "vm0"))
        here.wait_for_rounds({0: 0})
        for turn in range(1, BACK_AND_FORTH + 1):
            there = running.enter_context(machine(directory, f"vm{turn}", incoming=True))
            report = migrate(directory, here, there, Kind("annex"), f"relay{turn}")
            assert report["outcome"] == "completed"
            there.wait_for_rounds({0: here.progress().rounds.get(0, [0])[-1]})
            here.kill()
            here = there


def test_a_source_without_a_return_path_keeps_its_guest(directory: Path) -> None:
    with (
        machine(directory, "source") as source,
        machine(directory, "destination", incoming=True) as destination,
    ):
        destination.qmp.command("migrate-incoming", uri=f"unix:{directory / 'incoming'}")
        source.wait_for_rounds({0: 0})
        with RelayProcess(directory) as relay:
            source.qmp.command("migrate", uri=f"unix:{relay.address}")
            report = relay.report()
        assert report["outcome"] == "vetoed"
        assert "return-path" in report["reason"]
        source.wait_for_rounds({0: source.progress().rounds[0][-1]})
        assert runs(source)
        assert not runs(destination)
        # What a person finds who knows nothing of a relay.
        assert "'qmpfilter: the source asked for no return path" in (directory / "destination.stderr").read_text()


def test_a_destination_of_another_machine_refuses_and_the_source_goes_on(directory: Path) -> None:
    with (
        machine(directory, "source", extra=("-device", "virtio-rng-pci")) as source,
        machine(directory, "destination", incoming=True) as destination,
    ):
        source.wait_for_rounds({0: 0})
        source.configure(["return-path", "events"], {})
        destination.configure(["return-path", "events"], {})
        destination.qmp.command("migrate-incoming", uri=f"unix:{directory / 'incoming'}")
        with RelayProcess(directory) as relay:
            source.qmp.command("migrate", uri=f"unix:{relay.address}")
            report = relay.report()
        assert report["outcome"] == "refused"
        wait_until(lambda: runs(source), SECONDS, "the source to go on", 0.1)
        source.wait_for_rounds({0: source.progress().rounds[0][-1]})


def test_many_at_once(directory: Path) -> None:
    with contextlib.ExitStack() as running:
        pairs = []
        for number in range(AT_ONCE):
            source = running.enter_context(machine(directory, f"source{number}", memory=32))
            source.wait_for_rounds({0: 0})
            source.qmp.command("stop")
            destination = running.enter_context(machine(directory, f"there{number}", incoming=True, memory=32))
            for end in (source, destination):
                end.configure(["return-path", "events"], {})
            destination.qmp.command("migrate-incoming", uri=f"unix:{directory / f'in{number}'}")
            relay = running.enter_context(RelayProcess(directory, listen=f"r{number}", connect=f"in{number}"))
            pairs.append((source, destination, relay))
        for source, _, relay in pairs:
            source.qmp.command("migrate", uri=f"unix:{relay.address}")
        for source, destination, relay in pairs:
            assert relay.report()["outcome"] == "completed"
            destination.qmp.command("cont")
            destination.wait_for_rounds({0: source.progress().rounds[0][-1]})
            destination.kill()
