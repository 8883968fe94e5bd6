# SPDX-License-Identifier: GPL-2.0-or-later
"""Seconds and bytes in words."""

from __future__ import annotations

import pytest

from qmpfilter.report.figures import forward, seconds, size
from qmpfilter.report.told import Told


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0 ms"), (0.00484, "4.8 ms"), (0.25, "250 ms"), (1.5, "1.50 s"), (75.0, "1 min 15 s"),
        (7260.0, "2 h 1 min"),
    ],
)  # fmt: skip
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 20, "1.0 MiB"), (5 << 30, "5.0 GiB"), (1 << 60, "1048576.0 TiB")],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("report", "count"),
    [
        ({"traffic": [{"forward": 5}, {"forward": 7}, {}], "bytes": {"forward": 5}}, 12),
        ({"bytes": {"forward": 5}}, 5),
        ({}, None),
    ],
)
def test_what_went_to_the_destination(report: dict[str, object], count: int | None) -> None:
    assert forward(Told(report)) == count
