# SPDX-License-Identifier: GPL-2.0-or-later
"""Four hosts in two rings, from observing to svm2 and back, while things fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from tests.helpers.etcd import Etcd
from tests.lab.cluster import SECONDS, Cluster, Journey, Member, each, migrate, once_more, without_npt
from tests.lab.emulator import JobFailed
from tests.lab.hooked import arrival_at
from tests.lab.hosts import MID, NEW, OLD
from tests.lab.rolling import Operator, rolling

pytestmark = pytest.mark.cluster

SPARE: Final = "mid2"
RINGS: Final = {"old": "canary", "mid": "canary", "new": "rest", SPARE: "rest"}
#: A session's directory is there as soon as the source can come.
UNTIL_IT_COMES: Final = "until ls /run/qmpfilter/sessions/* >/dev/null 2>&1; do sleep 0.1; done"


def mode_of(journey: Journey, there: Member) -> str:
    """Has it migrated, and tells in which mode that was."""
    journey.go(there)
    return mode_at(there)


def mode_at(there: Member) -> str:
    """In which mode it came; what each mode leaves is there."""
    arrived = arrival_at(there)
    report: dict[str, Any] = arrived.report
    assert report["outcome"] == "completed"
    assert len(arrived.records) == report["edited_vcpus"]
    assert bool(arrived.records) == (report["mode"] == "annex")
    return str(report["mode"])


def go_while_the_store_dies(journey: Journey, there: Member, etcd: Etcd) -> str:
    """The same, and the store is killed when the stream begins to come."""

    def kill() -> None:
        there.run(["sh", "-c", UNTIL_IT_COMES], {}, SECONDS)
        etcd.kill()

    each(lambda do: do(), [lambda: journey.here.virsh(*migrate(there)), kill])
    journey.arrived(there)
    return mode_at(there)


@once_more
def test_from_observing_to_svm2_and_back(cluster: Cluster, etcd: Etcd, tmp_path: Path) -> None:
    old, mid, new, spare = cluster[OLD], cluster[MID], cluster[NEW], cluster[SPARE]
    journey = cluster.start(OLD)
    with rolling(cluster, etcd, tmp_path, RINGS) as operator:
        operator.rollout("start", "--rings", "canary,rest")
        operator.rollout("set", "--least-migrations", "1")
        assert mode_of(journey, mid) == "observe"
        operator.counted("canary", migrations=1)
        operator.rollout("promote", "rest")
        operator.rollout("promote", "canary")

        fails(operator, journey, old)
        assert mode_of(journey, old) == "observe"
        operator.rollout("resume", "--ring", "canary")

        assert go_while_the_store_dies(journey, mid, etcd) == "annex"
        assert mode_of(journey, old) == "annex"
        etcd.start()
        operator.counted("canary", migrations=2)

        assert mode_of(journey, new) == "observe"
        operator.counted("rest", migrations=1)
        operator.rollout("promote", "rest")
        assert mode_of(journey, spare) == "annex"
        operator.rollout("abort", "--ring", "rest")
        assert mode_of(journey, new) == "off"
        operator.rollout("resume", "--ring", "rest")
        assert mode_of(journey, spare) == "observe"


def fails(operator: Operator, journey: Journey, there: Member) -> None:
    """A host that cannot take the guest any more: it stays, virsh says why, and the ring is paused."""
    with without_npt(there):
        with pytest.raises(JobFailed, match="qmpfilter: vCPU 1"):
            journey.go(there)
        assert (journey.here.state(), there.state()) == ("running", "absent")
        journey.stayed()
        operator.counted("canary", vetoed=1)
        assert operator.ring("canary")["state"] == "paused"
