# SPDX-License-Identifier: GPL-2.0-or-later
"""``virsh migrate`` of a guest with live L2s between three kernels, QEMUs and libvirts, with a relay at the source alone."""

from __future__ import annotations

from typing import Final

import pytest

from qmpfilter.svm import annex
from tests.helpers.vcpus import vcpus_in_l2
from tests.lab.cluster import Cluster, once_more
from tests.lab.hosts import MID, NEW, OLD
from tests.lab.inhost.console import Corruption
from tests.lab.passage import by_source, facts

pytestmark = pytest.mark.lab

ROUND_TRIP: Final = (MID, NEW, MID, OLD)
SECONDS: Final = 60.0
NO_NPT: Final = "modprobe -r kvm_amd && modprobe kvm_amd nested=1 npt={}"


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
    journey = cluster.start(OLD)
    for host in ROUND_TRIP:
        there = cluster[host]
        passage = by_source(journey, there, destination=facts(there))
        assert (passage.status, passage.report["outcome"]) == (0, "completed"), passage.said
        journey.arrived(there)
        assert passage.report["warnings"] == []
        in_l2 = records(passage.stream)
        assert in_l2
        assert all(in_l2)
        assert passage.report["edited_vcpus"] == len(in_l2)
