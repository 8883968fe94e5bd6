# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds a cluster together, without booting one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import cast

import pytest

from tests.lab.cables import address, cables
from tests.lab.cluster import Cluster, once_more
from tests.lab.emulator import AGAIN, EmulatorError, JobFailed


def test_there_is_a_cable_between_each_two_hosts() -> None:
    ends = cables(3)
    assert [{cable.peer for cable in here} for here in ends] == [
        {address(number) for number in range(3) if number != here} for here in range(3)
    ]
    assert len({cable.card for here in ends for cable in here}) == 6
    for here in ends:
        for cable in here:
            cable.end.send(cable.card.encode())
    for number, here in enumerate(ends):
        for cable in here:
            with closing(cable.end) as end:
                sender = next(one for one in range(3) if address(one) == cable.peer)
                assert end.recv(64).decode() in {one.card for one in ends[sender] if one.peer == address(number)}


class Restarts:
    """A cluster as far as :func:`once_more` knows it, and what happens each time a test runs."""

    def __init__(self, happens: Sequence[Exception | None]) -> None:
        self.happens = list(happens)
        self.restarted = 0

    def restart(self) -> None:
        self.restarted += 1


def attempt(happens: Sequence[Exception | None]) -> Restarts:
    hosts = Restarts(happens)

    @once_more
    def test(cluster: Cluster) -> None:
        error = hosts.happens.pop(0)
        if error is not None:
            raise error

    test(cluster=cast(Cluster, hosts))
    return hosts


def test_a_test_is_repeated_where_a_host_stood_still_and_that_is_told() -> None:
    with pytest.warns(UserWarning, match=f"{AGAIN}: it stands"):
        assert attempt([EmulatorError("it stands"), None]).restarted == 1


def test_a_second_time_is_a_failure() -> None:
    with pytest.warns(UserWarning, match=AGAIN), pytest.raises(EmulatorError, match="still"):
        attempt([EmulatorError("it stands"), EmulatorError("it still stands")])


def test_all_else_fails_at_once() -> None:
    with pytest.raises(JobFailed):
        attempt([JobFailed("virsh"), None])
