# SPDX-License-Identifier: GPL-2.0-or-later
"""The fault matrix: whatever fails at whatever point, exactly one side runs the guest, and the report is true.

Where that is beyond a relay's reach the row says why.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.inhost.machine import Machine
from tests.lab.inhost.waiting import wait_until
from tests.lab.live import Fuse, Point, RelayProcess, freeze, machine, qemu_in, runs, thaw

pytestmark = pytest.mark.lab

SECONDS = 60.0
SETTLING = 0.5  # for the relay to pass on what it has
SHORT = ("--deadline", "idle=2", "--deadline", "tail=2")


class Fault(enum.Enum):
    SOURCE_DIES = "source dies"
    DESTINATION_DIES = "destination dies"
    RELAY_DIES = "relay is killed"
    CUT = "connection is cut"
    STALL = "network stalls"


class Row(NamedTuple):
    """What is to be after a fault: who runs the guest, and what the relay says, None where it cannot."""

    fault: Fault
    point: Point
    source: bool
    destination: bool
    outcome: str | None
    why: str = ""


BEFORE = (Point.SETUP, Point.RAM, Point.TAIL, Point.VCPU, Point.EOF)
NOBODY = "the guest died with its source"
TWICE = "a source that loses its connection after the commit point cannot know that the destination has started"
ROWS = (
    *(Row(Fault.SOURCE_DIES, point, False, False, "cancelled", NOBODY) for point in BEFORE),
    Row(Fault.SOURCE_DIES, Point.AFTER, False, True, "completed"),
    *(Row(Fault.DESTINATION_DIES, point, True, False, "refused") for point in BEFORE),
    # It dies with unread bytes, so the connection breaks and does not end: the relay cannot tell why.
    Row(Fault.DESTINATION_DIES, Point.AFTER, True, False, "in doubt"),
    *(Row(Fault.RELAY_DIES, point, True, False, None) for point in BEFORE),
    Row(Fault.RELAY_DIES, Point.AFTER, True, True, None, TWICE),
    *(Row(Fault.CUT, point, True, False, "cancelled") for point in BEFORE),
    Row(Fault.CUT, Point.AFTER, True, True, "completed", TWICE),
    *(Row(Fault.STALL, point, True, False, "failed") for point in BEFORE),
    Row(Fault.STALL, Point.AFTER, False, True, "completed"),
)


class Pair(NamedTuple):
    """A source that runs its guest, and a destination that waits."""

    directory: Path
    source: Machine
    destination: Machine


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with (
        qemu_in(tmp_path),
        machine(tmp_path, "source") as source,
        machine(tmp_path, "destination", incoming=True) as destination,
    ):
        source.wait_for_rounds({0: 0})
        for end in (source, destination):
            end.configure(["return-path", "events"], {})
        destination.qmp.command("migrate-incoming", uri=f"unix:{tmp_path / 'incoming'}")
        yield Pair(tmp_path, source, destination)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.fault.value}, {row.point.value}")
def test_row(row: Row, pair: Pair) -> None:
    directory, source, destination = pair
    # What fails after the commit point has to fail before the destination had time to answer.
    frozen = row.point is Point.AFTER and row.fault in (Fault.DESTINATION_DIES, Fault.RELAY_DIES, Fault.CUT)
    # Elsewhere no deadline may come before the fault.
    with RelayProcess(directory, *(SHORT if row.fault is Fault.STALL else ())) as relay:
        point = Point.EOF if frozen else row.point
        fuse = Fuse(directory, relay.address, point, silent=row.point is Point.AFTER)
        try:
            source.qmp.command("migrate", uri=f"unix:{fuse.address}")
            fuse.wait_until_reached()
            if frozen:
                # What is on its way to a destination that reads no more has to fit into buffers.
                time.sleep(SETTLING)
                freeze(destination)
                fuse.release()
                assert fuse.emptied.wait(SECONDS)
                fuse.wait_until_read()
                time.sleep(SETTLING)
            blow(row, pair, relay, fuse)
            if frozen and row.fault is not Fault.DESTINATION_DIES:
                thaw(destination)
            if row.point is Point.AFTER:
                wait_until(lambda: settled(row, pair), SECONDS, f"who runs the guest after {row}", 0.1)
                fuse.release()
            if row.outcome is not None:
                report = relay.report()
                assert (report["outcome"], bool(report["reason"])) == (row.outcome, row.outcome != "completed"), (
                    report
                )
            wait_until(lambda: settled(row, pair), SECONDS, f"who runs the guest after {row}", 0.1)
        finally:
            fuse.close()
    assert settled(row, pair)


def blow(row: Row, pair: Pair, relay: RelayProcess, fuse: Fuse) -> None:
    if row.fault is Fault.SOURCE_DIES:
        pair.source.kill()
        if row.point is not Point.AFTER:
            fuse.cut()
    elif row.fault is Fault.DESTINATION_DIES:
        pair.destination.kill()
        fuse.release()
    elif row.fault is Fault.RELAY_DIES:
        relay.process.kill()
        fuse.cut()
    elif row.fault is Fault.CUT:
        fuse.cut()


def settled(row: Row, pair: Pair) -> bool:
    return (runs(pair.source), runs(pair.destination)) == (row.source, row.destination)
