# SPDX-License-Identifier: GPL-2.0-or-later
"""``virsh migrate`` of a guest with live L2s through a relay on each host, which meet over TLS."""

from __future__ import annotations

from typing import Final

import pytest

from tests.helpers.pki import Authority
from tests.lab.cluster import Cluster, once_more, without_npt
from tests.lab.hosts import MID, NEW, OLD
from tests.lab.passage import by_pair, give_certificates

pytestmark = pytest.mark.cluster

#: Where the record passes beside the legacy state, and where alone.
ROUND_TRIP: Final = ((MID, "annex"), (NEW, "native"), (MID, "native"), (OLD, "annex"))


@pytest.fixture(scope="module")
def known(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Hosts that know each other by certificates."""
    directory = tmp_path_factory.mktemp("pki")
    authority = Authority(directory / "authority")
    for member in cluster.members.values():
        names = f"DNS:{member.name},IP:{member.address}"
        give_certificates(member, authority.host(directory / member.name, names))
    return cluster


@pytest.mark.usefixtures("known")
@once_more
def test_there_and_back_between_all_of_them(cluster: Cluster) -> None:
    journey = cluster.start(OLD)
    for host, mode in ROUND_TRIP:
        passage = by_pair(journey, cluster[host], ["--mode", mode])
        assert passage.arrival is not None
        ends = passage.report, passage.arrival
        assert (passage.status, *(end["outcome"] for end in ends)) == (0, "completed", "completed"), passage.said
        journey.arrived(cluster[host])
        assert {link["tls"]["version"] for end in ends for link in end["pair"].values()} == {"TLSv1.3"}
        here, there = (end["edited_vcpus"] for end in ends)
        assert here > 0
        assert there == (here if mode == "native" else 0)


@pytest.mark.usefixtures("known")
@once_more
def test_what_the_destination_tells_of_itself_keeps_a_guest(cluster: Cluster) -> None:
    journey, old = cluster.start(MID), cluster[OLD]
    with without_npt(old):
        passage = by_pair(journey, old)
        assert (passage.status, passage.report["outcome"]) == (1, "vetoed"), passage.said
        assert "qmpfilter: vCPU 1" in passage.said
        assert (journey.here.state(), old.state()) == ("running", "absent")
        journey.stayed()
