# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of daemons that sign a name, each looking when its turn comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qmpfilter.cluster.store import Lease
from qmpfilter.daemon.ownname import OwnName
from tests.helpers.cluster import a_board

LEASE = 30.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Run = tuple[OwnName, Lease]


@pytest.fixture
def begin(tmp_path: Path, clock: Clock) -> Callable[[], Run]:
    board = a_board(tmp_path / "store")
    return lambda: (OwnName(board, "a", LEASE, clock), board.store.lease(1000))


def look(run: Run) -> tuple[bool, bool]:
    own, lease = run
    own.look(lease)
    return bool(own.shared), own.doubted


def test_a_name_that_nobody_has_is_its_own_at_once(begin: Callable[[], Run], clock: Clock) -> None:
    run = begin()
    for clock.now in (0, 10, 20):
        assert look(run) == (False, False)


def test_who_was_killed_leaves_a_doubt_for_one_lease(begin: Callable[[], Run], clock: Clock) -> None:
    look(begin())
    run = begin()
    said = {}
    for clock.now in (0, 10, 20, 30):
        said[clock.now] = look(run)
    assert said == {0: (False, True), 10: (False, True), 20: (False, True), 30: (False, False)}


def test_who_took_leave_leaves_none(begin: Callable[[], Run]) -> None:
    before = begin()
    look(before)
    before[1].end()
    assert look(begin()) == (False, False)


def test_two_see_each_other_until_one_is_gone(begin: Callable[[], Run], clock: Clock) -> None:
    one, two = begin(), begin()
    assert look(one) == (False, False)
    # It may be one that was killed.
    assert look(two) == (False, True)
    for clock.now in (10, 20, 30, 40):
        assert look(one) == look(two) == (True, True)
    two[1].end()
    for clock.now in (50, 60):
        assert look(one) == (True, True)
    clock.now = 70
    assert look(one) == (False, False)
