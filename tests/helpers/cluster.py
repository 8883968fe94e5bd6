# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts, rings and rollouts that are made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qmpfilter.cluster.board import Board
from qmpfilter.cluster.changes import By
from qmpfilter.cluster.counts import Counts, Tally
from qmpfilter.cluster.directory import DirectoryStore
from qmpfilter.cluster.host import HostRecord
from qmpfilter.cluster.rollout import Ring, Rollout
from qmpfilter.filter.policy import Mode
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.version import Version

__all__ = ["ANNEX", "BY", "DOMAIN", "NATIVE", "a_board", "facts", "host", "rollout", "tally"]

BY: Final = By("an operator", "2026-01-02T03:04:05+00:00")
DOMAIN: Final = "0f0e0d0c-0b0a-4908-8706-050403020100"
ANNEX: Final = ("legacy", "annex")
NATIVE: Final = ("legacy", "annex", "svm2")


def facts(*formats: str, kernel: str | None = "6.12.1") -> HostFacts:
    """What is known of a host that takes these formats."""
    return HostFacts(kernel_release=kernel, kernel=Version.parse(kernel) if kernel else None, formats=formats)


def host(
    name: str, ring: str, *formats: str, ailing: str = "", kernel: str | None = "6.12.1", **more: Any
) -> HostRecord:
    """A host of a ring."""
    given = {"labels": (), "addresses": (), **more}
    known = facts(*formats, kernel=kernel)
    return HostRecord(name, ring, qmpfilter="0.1.0", libvirt="9.0.0", facts=known, ailing=ailing, when=BY.at, **given)


def rollout(stages: Mapping[str, Mode], **more: Any) -> Rollout:
    """One whose rings run at these stages."""
    return Rollout(1, tuple(Ring(name, stage) for name, stage in stages.items()), **more)


def tally(ring: str, mode: Mode, **counts: int) -> Tally:
    """What one host counted."""
    return Tally({ring: {mode: Counts(**counts)}})


def a_board(directory: Path, seconds: float = 20.0) -> Board:
    """The records in a directory, which is made if it is not there."""
    directory.mkdir(exist_ok=True)
    (directory / "store").touch()
    return Board(DirectoryStore(directory, seconds))
