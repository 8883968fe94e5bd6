# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has the guest, as both QEMUs told when all was over; the connections of a migration tell less."""

from __future__ import annotations

import enum
from typing import Final

from qmpfilter.qmp.endpoint import Endpoint

__all__ = ["Whereabouts", "whereabouts"]

_LEFT: Final = "postmigrate"


class Whereabouts(enum.Enum):
    """Where the guest is; stopped it may be there too, if it was so before."""

    SOURCE = "source"
    DESTINATION = "destination"
    BOTH = "both"
    """It runs twice, and damages what it writes to."""
    NEITHER = "neither"
    """The source believes that it went, and it arrived nowhere. Its memory is still there: ``cont`` revives it."""
    UNKNOWN = "unknown"


def whereabouts(source: Endpoint, destination: Endpoint) -> Whereabouts:
    """Of a migration that is over, from what the two said last."""
    arrived = not destination.gone and destination.info.completed
    if arrived and destination.runs and source.runs:
        return Whereabouts.BOTH
    if arrived and (source.gone or source.guest == _LEFT):
        return Whereabouts.DESTINATION
    if arrived or source.gone or not source.guest:
        return Whereabouts.UNKNOWN
    if source.guest == _LEFT:
        over = destination.gone or destination.info.over
        return Whereabouts.NEITHER if over else Whereabouts.UNKNOWN
    return Whereabouts.SOURCE if not source.info.active else Whereabouts.UNKNOWN
