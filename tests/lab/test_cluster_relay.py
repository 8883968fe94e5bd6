# SPDX-License-Identifier: GPL-2.0-or-later
"""``virsh migrate`` of a guest with live L2s, from kernel to kernel, with a relay at the source and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from qmpfilter.svm import annex
from tests.helpers.vcpus import vcpus_in_l2
from tests.lab.cluster import PROGRESS_SECONDS, Cluster, Member, each, migrate, once_more
from tests.lab.hosts import HOSTS, MID, NEW, OLD
from tests.lab.inhost.waiting import wait_until
from tests.lab.passage import by_source, facts
from tests.lab.svm2 import LOAD_SECONDS

pytestmark = pytest.mark.cluster

ROUND_TRIP: Final = (MID, NEW, MID, OLD)
#: Both L2s say something about as often: where one has so many times, the other has, or is dead.
LINES: Final = 4
NPT: Final = "modprobe -r kvm_amd && modprobe kvm_amd nested=1 npt={}"
REASON: Final = "qmpfilter: vCPU 1"


def records(stream: bytes) -> list[bool]:
    """Whether it has an svm2 record, for each vCPU in L2."""
    found = []
    for vcpu in vcpus_in_l2(stream):
        nested = vcpu.nested
        assert nested is not None
        assert nested.page is not None
        flags = {"run_pending": nested.run_pending, "gif": nested.gif}
        found.append(annex.decode(nested.page, nested.vmcb_pa, **flags) is not None)
    return found


@contextmanager
def without_npt(host: Member) -> Iterator[None]:
    """Without nested paging of its own a host offers none to an L1, and refuses an L2 that has it."""
    try:
        host.run(["sh", "-c", NPT.format(0)], {}, LOAD_SECONDS)
        yield
    finally:
        host.clear()
        host.run(["sh", "-c", NPT.format(1)], {}, LOAD_SECONDS)


@once_more
def test_there_and_back_between_all_of_them(cluster: Cluster) -> None:
    known = dict(zip(HOSTS.values(), each(facts, [cluster[host] for host in HOSTS.values()]), strict=True))
    journey = cluster.start(OLD)
    for host in ROUND_TRIP:
        there = cluster[host]
        passage = by_source(journey, there, destination=known[host])
        assert (passage.status, passage.report["outcome"]) == (0, "completed"), passage.said
        journey.arrived(there)
        assert passage.report["warnings"] == []
        in_l2 = records(passage.stream)
        assert in_l2
        assert all(in_l2)
        assert passage.report["edited_vcpus"] == len(in_l2)


@pytest.mark.parametrize(("source", "destination"), [("mid", "old"), ("old", "mid")])
@once_more
def test_what_a_destination_would_refuse_stays_and_virsh_says_why(
    cluster: Cluster, source: str, destination: str
) -> None:
    journey, there = cluster.start(HOSTS[source]), cluster[HOSTS[destination]]
    with without_npt(there):
        passage = by_source(journey, there, destination=facts(there))
        assert (passage.status, passage.report["outcome"]) == (1, "vetoed"), passage.said
        assert REASON in passage.said
        assert (journey.here.state(), there.state()) == ("running", "absent")
        journey.stayed()


@once_more
def test_without_a_relay_old_takes_it_and_an_l2_is_lost(cluster: Cluster) -> None:
    journey, old = cluster.start(MID), cluster[OLD]
    with without_npt(old):
        # virsh says that all went well.
        journey.here.virsh(*migrate(old, "--listen-address", old.address))
        assert (journey.here.state(), old.state()) == ("absent", "running")
        wait_until(lambda: lines(old, 0) >= LINES, PROGRESS_SECONDS, "the L2 that needs no nested paging", 0.5)
        assert lines(old, 1) == 0


def lines(host: Member, vcpu: int) -> int:
    """How often the L2 of a vCPU has said something at a host."""
    return sum(line.startswith(f"2 {vcpu} ") for line in host.console().splitlines())
