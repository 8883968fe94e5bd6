# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has the guest, by what both QEMUs said."""

from __future__ import annotations

import pytest

from qmpfilter.qmp.endpoint import Endpoint
from qmpfilter.qmp.info import MigrationInfo
from qmpfilter.qmp.whereabouts import Whereabouts, whereabouts

GONE = ("gone", "")


def end(guest: str, status: str) -> Endpoint:
    """One that said this; GONE is one that does not answer."""
    told = Endpoint("/run/vm")
    told.gone = guest == "gone"
    told.guest = "" if told.gone else guest
    told.info = MigrationInfo(status=status)
    return told


@pytest.mark.parametrize(
    ("source", "destination", "where"),
    [
        (("postmigrate", "completed"), ("running", "completed"), Whereabouts.DESTINATION),
        (("postmigrate", "completed"), ("paused", "completed"), Whereabouts.DESTINATION),
        (GONE, ("running", "completed"), Whereabouts.DESTINATION),
        (("running", "failed"), ("running", "completed"), Whereabouts.BOTH),
        (("paused", "failed"), ("paused", "completed"), Whereabouts.UNKNOWN),
        (("running", "failed"), GONE, Whereabouts.SOURCE),
        (("running", "cancelled"), ("inmigrate", ""), Whereabouts.SOURCE),
        (("paused", "failed"), ("inmigrate", "failed"), Whereabouts.SOURCE),
        (("running", "active"), GONE, Whereabouts.UNKNOWN),
        (("finish-migrate", "device"), ("inmigrate", "active"), Whereabouts.UNKNOWN),
        (("postmigrate", "completed"), GONE, Whereabouts.NEITHER),
        (("postmigrate", "completed"), ("inmigrate", "failed"), Whereabouts.NEITHER),
        (("postmigrate", "completed"), ("inmigrate", "active"), Whereabouts.UNKNOWN),
        (GONE, GONE, Whereabouts.UNKNOWN),
        (("", ""), ("inmigrate", "active"), Whereabouts.UNKNOWN),
    ],
)
def test_where(source: tuple[str, str], destination: tuple[str, str], where: Whereabouts) -> None:
    assert whereabouts(end(*source), end(*destination)) is where
