# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has the guest, as both libvirts told when all was over.

Source: libvirt 11.3 include/libvirt/libvirt-domain.h (virDomainPausedReason).
"""

from __future__ import annotations

from typing import Final

from qmpfilter.libvirt.connection import State
from qmpfilter.qmp.whereabouts import Whereabouts

__all__ = ["whereabouts"]

_MIGRATING: Final = (2, 11, 12, 13)
"""Paused by a migration: on its way, starting up, in postcopy, and in one that failed."""


def whereabouts(source: State | None, destination: State | None) -> Whereabouts:
    """Of a migration that is over.

    :param source: None where nothing is known
    """
    if source is None or destination is None:
        return Whereabouts.UNKNOWN
    if source.runs and destination.runs:
        return Whereabouts.BOTH
    leaving, arriving = _in_migration(source), _in_migration(destination)
    if leaving and arriving:
        return Whereabouts.UNKNOWN
    if destination.active and not arriving:
        # It may run by another way than this one, too: then the source's was stopped for it.
        return Whereabouts.UNKNOWN if source.active and not leaving else Whereabouts.DESTINATION
    if source.active:
        return Whereabouts.SOURCE
    return Whereabouts.UNKNOWN if destination.active else Whereabouts.NEITHER


def _in_migration(state: State) -> bool:
    return state.name == "paused" and state.reason in _MIGRATING
