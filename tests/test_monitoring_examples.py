# SPDX-License-Identifier: GPL-2.0-or-later
"""The alerts and the dashboard ask for metrics that there are."""

from __future__ import annotations

import re
from itertools import pairwise

from qmpfilter.daemon.metrics import Metrics
from qmpfilter.filter.policy import Mode
from qmpfilter.relay.session import Outcome
from tests.helpers.monitoring import RULES, expressions, panels

METRIC = re.compile(r"\bqmpfilter_[a-z_]+\b")
LABEL = re.compile(r'\b(outcome|mode|where|direction)=~?"([^"]*)"')
COLUMNS = 24


def names() -> set[str]:
    """Those that a daemon tells, with what Prometheus adds."""
    families = list(Metrics(lambda: 0, lambda: False).registry.collect())
    added = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",), "gauge": ("",)}
    return {family.name + suffix for family in families for suffix in added[family.type]}


def test_the_alerts_ask_for_metrics_that_there_are() -> None:
    asked = set(METRIC.findall(RULES.read_text()))
    assert len(asked) >= 7
    assert asked <= names()


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    asked = {name for text in expressions() for name in METRIC.findall(text)}
    assert len(asked) >= 12
    assert asked <= names()


def test_labels_have_values_that_there_are() -> None:
    known = {
        "outcome": {one.value for one in Outcome},
        "mode": {one.value for one in Mode},
        "where": {"both", "neither"},
        "direction": {"forward", "backward"},
    }
    for text in (RULES.read_text(), *expressions()):
        for label, values in LABEL.findall(text):
            assert set(values.split("|")) <= known[label]


def test_the_panels_have_room() -> None:
    places = sorted((panel["gridPos"]["y"], panel["gridPos"]["x"], panel["gridPos"]["w"]) for panel in panels())
    for (row, left, width), (next_row, next_left, _) in pairwise(places):
        assert left + width <= (next_left if row == next_row else COLUMNS)
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert all(panel["title"] and panel["description"] for panel in panels())
