# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples for Prometheus and Grafana."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

__all__ = ["DASHBOARD", "PROMETHEUS", "RULES", "expressions", "panels"]

_EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
PROMETHEUS: Final = _EXAMPLES / "prometheus"
RULES: Final = PROMETHEUS / "qmpfilter.rules.yml"
DASHBOARD: Final = _EXAMPLES / "grafana" / "qmpfilter.json"

# What Grafana puts in the place of its variables.
_VARIABLES: Final = {"$__rate_interval": "5m", "$__range": "1d", "$instance": ".*"}


def panels() -> list[dict[str, Any]]:
    """The dashboard's, in their order."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    """The dashboard's, as they reach Prometheus."""
    for panel in panels():
        for target in panel["targets"]:
            text: str = target["expr"]
            for name, value in _VARIABLES.items():
                text = text.replace(name, value)
            yield text
