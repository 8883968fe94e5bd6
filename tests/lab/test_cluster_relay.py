# SPDX-License-Identifier: GPL-2.0-or-later
"""``virsh migrate`` of a guest with live L2s, from kernel to kernel, with a relay at the source and nothing else."""

from __future__ import annotations

import re
from typing import Final

import pytest

from qmpfilter.svm import annex
from tests.helpers.vcpus import vcpus_in_l2
from tests.lab.cluster import (
    DOMAIN,
    SECONDS,
    Cluster,
    each,
    migrate,
    once_more,
    without_npt,
)
from tests.lab.hosts import HOSTS, MID, NEW, OLD
from tests.lab.passage import by_source, facts

pytestmark = pytest.mark.cluster

ROUND_TRIP: Final = (MID, NEW, MID, OLD)
RESET_RIP: Final = 0xFFF0
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


#: QEMU 7.2 says it in the domain's log and ends, so that libvirt looks there; 10.0 says it there and stays; 11.1 says
#: it to libvirt.
@pytest.mark.parametrize(
    ("source", "destination", "says"),
    [("mid", "old", {"log", "virsh"}), ("old", "mid", {"log"}), ("mid", "new", {"virsh"})],
)
@once_more
def test_what_a_destination_would_refuse_stays_and_somebody_says_why(
    cluster: Cluster, source: str, destination: str, says: set[str]
) -> None:
    journey, there = cluster.start(HOSTS[source]), cluster[HOSTS[destination]]
    with without_npt(there):
        passage = by_source(journey, there, destination=facts(there))
        assert (passage.status, passage.report["outcome"]) == (1, "vetoed"), passage.said
        log = there.run(["cat", f"/var/log/libvirt/qemu/{DOMAIN}.log"], {}, SECONDS).output
        assert {where for where, text in (("log", log), ("virsh", passage.said)) if REASON in text} == says
        assert (journey.here.state(), there.state()) == ("running", "absent")
        journey.stayed()


@once_more
def test_without_a_relay_old_takes_it_and_an_l2_is_lost(cluster: Cluster) -> None:
    journey, old = cluster.start(MID), cluster[OLD]
    with without_npt(old):
        # virsh says that all went well.
        journey.here.virsh(*migrate(old, "--listen-address", old.address))
        assert (journey.here.state(), old.state()) == ("absent", "running")
        # QEMU set no register of the vCPU whose nested state was refused, and had the guest run.
        told = old.virsh("qemu-monitor-command", DOMAIN, "--hmp", "info registers -a")
        registers = dict(re.findall(r"^CPU#(\d+).*?RIP=([0-9a-f]+)", told, re.MULTILINE | re.DOTALL))
        assert int(registers["0"], 16) != RESET_RIP
        assert int(registers["1"], 16) == RESET_RIP
