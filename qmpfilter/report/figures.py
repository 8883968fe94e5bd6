# SPDX-License-Identifier: GPL-2.0-or-later
"""Seconds and bytes as a person reads them."""

from __future__ import annotations

from typing import Final

from qmpfilter.report.told import Told

__all__ = ["forward", "seconds", "size"]

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


def forward(report: Told) -> float | None:
    """Bytes to the destination on all channels; of a report without channels on the main one, None without either."""
    channels = [one.number("forward") or 0.0 for one in report.each("traffic")]
    return sum(channels) if channels else report.number("bytes", "forward")


def seconds(value: float) -> str:
    """A span of time, with about three digits."""
    if value < 1:
        return f"{value * 1e3:.1f} ms" if value < 0.1 else f"{value * 1e3:.0f} ms"
    if value < _MINUTE:
        return f"{value:.2f} s"
    if value < _HOUR:
        return f"{value // _MINUTE:.0f} min {value % _MINUTE:.0f} s"
    return f"{value // _HOUR:.0f} h {value % _HOUR // _MINUTE:.0f} min"


def size(count: float) -> str:
    """A number of bytes."""
    power = 0
    while count >= 1024 and power < len(_UNITS) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.1f} {_UNITS[power]}" if power else f"{count:.0f} bytes"
