# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock of a file that somebody else has, for a while or for good."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpfilter.flock import locked_within

SECONDS = 20.0


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A file, opened twice."""
    descriptors = [os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    yield descriptors[0], descriptors[1]
    os.close(descriptors[1])


def test_what_nobody_has_needs_no_time(two: tuple[int, int]) -> None:
    assert locked_within(two[0], 0)
    os.close(two[0])


def test_what_is_never_let_go_is_waited_for_so_long(two: tuple[int, int]) -> None:
    assert locked_within(two[0], 0)
    began = time.monotonic()
    assert not locked_within(two[1], 0.05)
    assert time.monotonic() - began >= 0.05
    os.close(two[0])


def test_what_is_let_go_is_had(two: tuple[int, int]) -> None:
    assert locked_within(two[0], 0)
    assert not locked_within(two[1], 0)
    thread = threading.Timer(0.05, os.close, [two[0]])
    thread.start()
    assert locked_within(two[1], SECONDS)
    thread.join()
