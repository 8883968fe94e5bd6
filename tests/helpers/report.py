# SPDX-License-Identifier: GPL-2.0-or-later
"""The report that `qmpfilter inspect` makes of a stream."""

from __future__ import annotations

import functools

from qmpfilter.inspect.collect import Report
from tests.helpers.parse import parse

__all__ = ["report_of"]


@functools.lru_cache(maxsize=2)
def report_of(stream: bytes) -> Report:
    """Everything that is told of a stream, and its error if there is one."""
    parsed = parse(stream)
    report = Report(error=parsed.error)
    for event in parsed.events:
        report.add(event)
    return report
