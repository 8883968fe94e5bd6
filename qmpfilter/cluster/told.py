# SPDX-License-Identifier: GPL-2.0-or-later
"""A rollout as it is told: how far every ring is, what stands against its next stage, and what a plan would bring."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from qmpfilter.cluster.changes import obstacles
from qmpfilter.cluster.counts import Counts, Sum, since
from qmpfilter.cluster.host import HostRecord
from qmpfilter.cluster.plan import Move
from qmpfilter.cluster.rollout import Ring, Rollout, Switch, stage_after

__all__ = ["moves_as_json", "rings_as_json", "rollout_as_json"]


def rollout_as_json(
    rollout: Rollout | None, counts: Sum, switch: Switch | None, hosts: Mapping[str, HostRecord]
) -> dict[str, Any]:
    """All that is known of it, for :func:`json.dumps`."""
    whole = None if rollout is None else json.loads(rollout.to_json())
    return {
        "off": None if switch is None else json.loads(switch.to_json()),
        "rollout": whole,
        "progress": [] if rollout is None else rings_as_json(rollout, counts, hosts.values()),
        "damaged": list(counts.damaged),
    }


def rings_as_json(rollout: Rollout, counts: Sum, hosts: Iterable[HostRecord]) -> list[dict[str, Any]]:
    """How far each ring is."""
    sizes = Counter(host.ring for host in hosts)
    return [_ring(rollout, ring, counts, sizes[ring.name]) for ring in rollout.rings]


def _ring(rollout: Rollout, ring: Ring, counts: Sum, hosts: int) -> dict[str, Any]:
    seen = since(ring.baseline, counts.readable.get(ring.name, {}))
    following = stage_after(ring.stage)
    return {
        "ring": ring.name,
        "hosts": hosts,
        "stage": ring.stage.value,
        "state": ring.state.value,
        "why": ring.why,
        "canaries": {"percent": ring.canaries.percent, "labels": list(ring.canaries.labels)},
        "migrations": seen.get(ring.stage, Counts()).migrations,
        "needed": rollout.thresholds.least_migrations,
        "vetoed": sum(one.vetoed for one in seen.values()),
        "failed": sum(one.failed for one in seen.values()),
        "in_doubt": sum(one.in_doubt for one in seen.values()),
        "next": None if following is None else following.value,
        "obstacles": [*obstacles(rollout, ring, counts.readable), *counts.damaged] if following else [],
    }


def moves_as_json(moves: Iterable[Move]) -> list[dict[str, Any]]:
    """A plan."""
    return [
        {
            "ring": move.ring,
            "stage": move.stage.value,
            "needed": move.needed,
            "pairs": {mode.value: count for mode, count in move.pairs.items()},
            "held": [
                {"mode": held.mode.value, "pairs": held.pairs, "example": list(held.example), "why": held.why}
                for held in move.held
            ],
        }
        for move in moves
    ]
