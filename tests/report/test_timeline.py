# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened when, from the moments of the filter and the events of both QEMUs."""

from __future__ import annotations

from typing import Any

import pytest

from qmpfilter.report.timeline import Kind, Timeline, timeline
from qmpfilter.report.told import Told
from tests.report.samples import sample


def at(second: float) -> str:
    return f"2026-03-01T14:25:{10 + second:06.3f}+00:00"


REPORT: dict[str, Any] = {
    "moments": {
        "waiting": at(-5), "connected": at(0), "return path": at(0.1), "tail": at(6.1), "committed": at(6.125),
        "answered": at(6.5), "ended": at(6.6),
    },
    "seconds": {"tail": 0.025, "total": 6.6},
    "source": {"events": [
        {"at": at(-0.1), "what": "active"}, {"at": at(0.2), "what": "MIGRATION_PASS", "pass": 1},
        {"at": at(4.0), "what": "MIGRATION_PASS", "pass": 2}, {"at": at(6.0), "what": "STOP"},
        {"at": at(6.55), "what": "completed"},
    ]},
    "destination": {"events": [{"at": at(6.4), "what": "RESUME"}]},
}  # fmt: skip


def spans(line: Timeline | None, kind: Kind) -> list[tuple[float, float]]:
    assert line is not None
    return [(round(span.begin, 3), round(span.end, 3)) for span in line.spans if span.kind is kind]


def test_a_migration_with_both_qemus() -> None:
    line = timeline(Told(REPORT))
    assert line is not None
    assert line.length == pytest.approx(6.6)
    assert [(round(mark.at, 3), mark.who) for mark in line.marks[:3]] == [
        (-5, "filter"),
        (-0.1, "source"),
        (0, "filter"),
    ]
    assert spans(line, Kind.PASS) == [(0.2, 4.0), (4.0, 6.1)]
    assert spans(line, Kind.MEMORY) == [(0.0, 6.1)]
    assert spans(line, Kind.HOLD) == [(6.1, 6.125)]
    assert spans(line, Kind.ANSWER) == [(6.125, 6.5)]
    assert spans(line, Kind.STOPPED) == [(6.0, 6.4)]


def test_the_switch_over_begins_when_the_guest_stops() -> None:
    line = timeline(Told(REPORT))
    assert line is not None
    inner = line.switch_over
    assert inner is not None
    assert inner.length == pytest.approx(0.5)
    assert spans(inner, Kind.STOPPED) == [(0.0, 0.4)]
    assert spans(inner, Kind.HOLD) == [(0.1, 0.125)]
    assert spans(inner, Kind.PASS) == []


def test_without_qmp_there_is_what_the_filter_saw() -> None:
    line = timeline(Told({name: REPORT[name] for name in ("moments", "seconds")}))
    assert {span.kind for span in line.spans} == {Kind.MEMORY, Kind.HOLD, Kind.ANSWER} if line else False


def test_a_veto_has_held_what_did_not_pass() -> None:
    moments = {name: REPORT["moments"][name] for name in ("waiting", "connected", "tail")} | {"ended": at(6.2)}
    line = timeline(Told({"moments": moments, "seconds": {"total": 6.2}}))
    assert spans(line, Kind.HOLD) == [(6.1, 6.2)]
    assert spans(line, Kind.ANSWER) == []


@pytest.mark.parametrize("report", [{}, {"moments": {"waiting": at(0), "ended": at(1)}}, {"moments": "none"}])
def test_nothing_was_connected(report: dict[str, Any]) -> None:
    assert timeline(Told(report)) is None


def test_of_a_real_stream() -> None:
    line = timeline(Told(sample()))
    assert line is not None
    assert {span.kind for span in line.spans} == set(Kind)
    assert all(0 <= span.begin <= span.end <= line.length for span in line.spans)
