# SPDX-License-Identifier: GPL-2.0-or-later
"""What this host tells its cluster of itself, as it is found here and now."""

from __future__ import annotations

from qmpfilter import __version__
from qmpfilter.cluster.board import signed
from qmpfilter.cluster.host import HostRecord
from qmpfilter.daemon.config import Cluster
from qmpfilter.doctor.checks import Level, examine
from qmpfilter.doctor.gather import gather
from qmpfilter.errors import HostError
from qmpfilter.verdict.facts import HostFacts

__all__ = ["look_here"]


def look_here(settings: Cluster) -> HostRecord:
    """Look at this host.

    :param settings: what it is in its cluster
    """
    libvirt, ailing = "", ""
    if settings.facts is not None:
        facts = HostFacts()
        try:
            facts = HostFacts.from_json(settings.facts.read_bytes())
        except (HostError, OSError) as error:
            ailing = f"{settings.facts}: {error.strerror if isinstance(error, OSError) else error}"
    else:
        survey = gather()
        facts = survey.facts
        libvirt = "" if survey.libvirt is None else str(survey.libvirt)
        failed = [answer for answer in examine(survey) if answer.level is Level.FAIL]
        ailing = "; ".join(f"checking {answer.title}: {answer.hint}" for answer in failed)
    return HostRecord(
        name=settings.name,
        ring=settings.ring,
        labels=settings.labels,
        addresses=settings.addresses,
        qmpfilter=__version__,
        libvirt=libvirt,
        facts=facts,
        ailing=ailing,
        when=signed(settings.name).at,
    )
