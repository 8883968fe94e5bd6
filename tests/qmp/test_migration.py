# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole migrations between QEMUs that only pretend."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qmpfilter.errors import HostError, PolicyError
from qmpfilter.filter.policy import Policy
from qmpfilter.qmp.destination import Destination
from qmpfilter.qmp.endpoint import Endpoint
from qmpfilter.qmp.migration import Migration
from qmpfilter.qmp.source import Source
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.session import Outcome
from qmpfilter.verdict.facts import HostFacts
from tests.qmp.fake import SECONDS, STREAM, FakeQemu

# Of the tail: longer than a source is asked for memory.
WAITS = Waits(connect=2.0, idle=5.0, tail=10.0, linger=1.0)
NO_NESTING = HostFacts.from_json(
    json.dumps({"schema": "qmpfilter.host/1", "kvm": {"parameters": {"kvm_amd": {"nested": "0"}}}})
)
BEFORE = {"events": False, "return-path": False, "multifd": False, "xbzrle": False}


class Pair(NamedTuple):
    """The two QEMUs."""

    source: FakeQemu
    destination: FakeQemu

    def migration(self, policy: Policy | None = None, **options: Any) -> Migration:
        source, destination = Source(str(self.source.path)), Destination(str(self.destination.path))
        return Migration(source, destination, policy or Policy(), WAITS, **options)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with FakeQemu(tmp_path / "source") as source, FakeQemu(tmp_path / "destination", incoming=True) as destination:
        yield Pair(source, destination)


def test_completed(pair: Pair) -> None:
    migration = pair.migration(read_memory=False)
    assert asyncio.run(migration.run()) is Outcome.COMPLETED
    assert pair.source.names() == ["migrate-set-capabilities", "getfd", "migrate"]
    assert pair.source.capabilities == BEFORE | {"events": True, "return-path": True}
    # The destination has the source's during the migration, and its own after it.
    assert pair.destination.names() == [
        "migrate-set-capabilities", "getfd", "migrate-incoming", "migrate-set-capabilities",
    ]  # fmt: skip
    assert pair.destination.capabilities == BEFORE
    assert len(pair.destination.arrived) == len(STREAM)
    told = json.loads(json.dumps(migration.report()))
    assert (told["outcome"], told["guest_at"]) == ("completed", "destination")
    source, destination = told["source"], told["destination"]
    assert (source["qemu"], source["guest"], source["migration"]["status"]) == ("10.0.2", "postmigrate", "completed")
    assert source["migration"]["milliseconds"] == {"total": 120, "setup": 0, "downtime": 7}
    assert [event["what"] for event in source["events"]] == ["active", "MIGRATION_PASS", "STOP", "completed"]
    assert (destination["guest"], destination["migration"]["status"]) == ("running", "completed")
    assert source["problems"] == destination["problems"] == []


def test_a_veto_leaves_all_as_it_was(pair: Pair) -> None:
    migration = pair.migration(Policy(facts=NO_NESTING))
    assert asyncio.run(migration.run()) is Outcome.VETOED
    assert migration.source.runs
    assert pair.source.capabilities == BEFORE
    assert pair.destination.status == "inmigrate"
    assert pair.source.names()[-2:] == ["migrate_cancel", "migrate-set-capabilities"]


@pytest.mark.parametrize("which", ["source", "destination"])
def test_settings_that_forbid_it_change_nothing(which: str, pair: Pair) -> None:
    getattr(pair, which).parameters["tls-creds"] = "tls0"
    with pytest.raises(PolicyError, match="tls-creds"):
        asyncio.run(pair.migration().run())
    assert pair.source.names() == pair.destination.names() == []


@pytest.mark.parametrize("refused", ["migrate", "getfd", "migrate-set-capabilities"])
def test_a_source_that_does_not_begin(refused: str, pair: Pair) -> None:
    pair.source.refused[refused] = "no, not now"
    with pytest.raises(HostError, match=f"{refused}: no, not now"):
        asyncio.run(pair.migration().run())
    assert pair.source.capabilities == pair.destination.capabilities == BEFORE
    assert ("closefd" in pair.source.names()) == (refused == "migrate")


def test_a_destination_that_does_not_begin(pair: Pair) -> None:
    pair.destination.refused["migrate-incoming"] = "no, not now"
    migration = pair.migration()
    assert asyncio.run(migration.run()) is Outcome.FAILED
    assert "migrate-incoming: no, not now" in migration.relay.session.reason
    assert migration.source.runs
    assert pair.source.capabilities == pair.destination.capabilities == BEFORE


def test_a_capability_that_the_destination_does_not_have(pair: Pair) -> None:
    pair.source.capabilities["dirty-bitmaps"] = True
    with pytest.raises(PolicyError, match=r"QEMU 10\.0\.2 has no migration capability dirty-bitmaps"):
        asyncio.run(pair.migration().run())
    assert pair.source.names() == pair.destination.names() == []


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("which", ["source", "destination"])
def test_a_lost_connection_stops_nothing(again: bool, which: str, pair: Pair) -> None:
    qemu: FakeQemu = getattr(pair, which)
    stream = pair.source.held = threading.Event()
    migration = pair.migration()
    follower: Endpoint = getattr(migration, which)

    def lose() -> None:
        _until(lambda: _followed(pair))
        (qemu.cut if again else qemu.die)()
        # It notices while the migration goes on.
        _until(lambda: follower.gone or bool(follower.problems))
        stream.set()

    threading.Thread(target=lose).start()
    assert asyncio.run(migration.run()) is Outcome.COMPLETED
    assert len(pair.destination.arrived) == len(STREAM)
    told = follower.as_json()
    assert told["gone"] == (not again)
    if again:
        assert told["problems"] == ["the QMP connection was lost and made again: events in between are not known"]
        assert told["migration"]["status"] == "completed"
    else:
        assert told["problems"] == ["the QMP connection was lost: this QEMU has ended, or closed its QMP socket"]


def test_a_source_that_answers_no_more(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said before is not told as if it were so in the end."""
    monkeypatch.setattr("qmpfilter.qmp.endpoint._SETTLE_SECONDS", 0.3)
    # Of waiting for memory, which is not answered either.
    monkeypatch.setattr("qmpfilter.qmp.migration.MEMORY_SECONDS", 0.3)
    stream = pair.source.held = threading.Event()
    migration = pair.migration()

    def hang() -> None:
        _until(lambda: "migrate-incoming" in pair.destination.names())
        pair.source.silent |= {"query-migrate", "query-status"}
        stream.set()

    threading.Thread(target=hang).start()
    assert asyncio.run(migration.run()) is Outcome.COMPLETED
    assert (migration.source.guest, migration.source.gone) == ("", False)
    assert len(migration.source.problems) == 1
    assert "nothing of the migration's end within 0.3 s" in migration.source.problems[0]
    assert migration.report()["guest_at"] == "unknown"


def test_interrupted(pair: Pair) -> None:
    pair.source.held = threading.Event()
    migration = pair.migration()

    async def run() -> Outcome:
        work = asyncio.create_task(migration.run())
        while not _followed(pair):
            await asyncio.sleep(0.01)
        migration.interrupt()
        migration.interrupt()
        assert pair.source.held is not None
        pair.source.held.set()
        return await work

    assert asyncio.run(run()) is Outcome.STOPPED
    assert migration.relay.session.reason == "the operator stopped it"
    assert "migrate_cancel" in pair.source.names()
    assert migration.source.runs
    assert pair.source.capabilities == BEFORE


def test_interrupted_before_it_was_begun(pair: Pair) -> None:
    pair.source.silent.add("query-status")
    migration = pair.migration()

    async def run() -> None:
        work = asyncio.create_task(migration.run())
        while not any(name == "query-status" for name, _ in pair.source.commands):
            await asyncio.sleep(0.01)
        migration.interrupt()
        await work

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
    assert pair.source.names() == pair.destination.names() == []


def test_pages_of_a_guest_that_stands_still(pair: Pair) -> None:
    async def run() -> dict[int, bytes]:
        source = Source(str(pair.source.path))
        await source.connect()
        try:
            with pytest.raises(HostError, match="the guest runs"):
                await source.read_pages([0x1000])
            pair.source.status = "finish-migrate"
            with pytest.raises(HostError, match="is not the address of a page"):
                await source.read_pages([0x1000, 0x1001])
            return await source.read_pages([0x1000, 0x7000])
        finally:
            await source.close()

    pages = asyncio.run(run())
    assert sorted(pages) == [0x1000, 0x7000]
    assert {len(page) for page in pages.values()} == {4096}


@pytest.mark.parametrize("read", [True, False])
def test_vmcb12_is_read_while_the_tail_is_held(read: bool, pair: Pair) -> None:
    migration = pair.migration(read_memory=read)
    assert asyncio.run(migration.run()) is Outcome.COMPLETED
    assert ("human-monitor-command" in pair.source.names()) == read
    assert migration.report()["vmcb12_pages_read"] == int(read)


def _followed(pair: Pair) -> bool:
    """Both do what they were told to, and were asked how it goes."""
    for qemu, told in ((pair.source, "migrate"), (pair.destination, "migrate-incoming")):
        names = [name for name, _ in qemu.commands]
        if told not in names or "query-migrate" not in names[names.index(told) :]:
            return False
    return True


def _until(condition: Callable[[], bool]) -> None:
    late = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < late
        time.sleep(0.01)
