# SPDX-License-Identifier: GPL-2.0-or-later
"""``virsh migrate`` without a flag between hosts that have the daemon and libvirt's hook."""

from __future__ import annotations

from typing import Final

import pytest

from tests.lab.cluster import Cluster, once_more
from tests.lab.hooked import arrival_at, hooked
from tests.lab.hosts import MID, NEW, OLD

pytestmark = pytest.mark.cluster

ROUND_TRIP: Final = (MID, NEW, MID, OLD)
KINDS: Final = (
    (NEW, ("--postcopy", "--postcopy-after-precopy"), ["main", "other"]),
    (MID, ("--parallel", "--parallel-connections", "2"), ["main", "multifd"]),
    (NEW, ("--p2p",), ["main"]),
)
MANY: Final = 25


@pytest.mark.journey
@once_more
def test_there_and_back_between_all_of_them(cluster: Cluster) -> None:
    journey = cluster.start(OLD)
    with hooked(cluster):
        for host in ROUND_TRIP:
            journey.go(cluster[host])
            arrived = arrival_at(cluster[host])
            assert arrived.told.host == host.name
            assert (arrived.report["outcome"], arrived.report["warnings"]) == ("completed", [])
            assert len(arrived.records) == arrived.report["edited_vcpus"] > 0


@once_more
def test_each_kind_of_migration(cluster: Cluster) -> None:
    journey = cluster.start(MID, dirty=64, spin=20_000)
    with hooked(cluster):
        for host, flags, channels in KINDS:
            journey.go(cluster[host], *flags)
            report = arrival_at(cluster[host]).report
            assert (report["outcome"], sorted(set(report["channels"]))) == ("completed", channels)


@once_more
def test_many_in_a_row(cluster: Cluster) -> None:
    journey = cluster.start(MID)
    with hooked(cluster):
        for turn in range(MANY):
            journey.go(cluster[MID if turn % 2 else NEW])
