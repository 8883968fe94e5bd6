# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host tells the others of itself. Its entry in the store goes with its lease, so a host that died is not
listed for long."""

from __future__ import annotations

import json
from dataclasses import dataclass

from qmpfilter.cluster.form import Fields, dumped
from qmpfilter.verdict.facts import HostFacts

__all__ = ["HostRecord", "Seen"]


@dataclass(frozen=True)
class HostRecord:
    """One host.

    :param name: in the cluster
    :param ring: that it is in
    :param labels: by which canaries are chosen
    :param addresses: under which migrations come to it, besides its name
    :param qmpfilter: version of its daemon
    :param libvirt: version of its libvirt, empty where there is none
    :param facts: kernel, QEMU, formats and limits
    :param ailing: why it is not healthy, empty if it is
    :param when: this was found, UTC by the host's own clock; nothing is decided by it
    """

    name: str
    ring: str
    labels: tuple[str, ...]
    addresses: tuple[str, ...]
    qmpfilter: str
    libvirt: str
    facts: HostFacts
    ailing: str
    when: str

    @property
    def known(self) -> bool:
        """What a decision asks of its facts is known."""
        return self.facts.kernel is not None and bool(self.facts.formats)

    def to_json(self) -> bytes:
        """As it is stored."""
        return dumped({
            "name": self.name,
            "ring": self.ring,
            "labels": list(self.labels),
            "addresses": list(self.addresses),
            "qmpfilter": self.qmpfilter,
            "libvirt": self.libvirt,
            "facts": self.facts.to_json(),
            "ailing": self.ailing,
            "when": self.when,
        })  # fmt: skip

    @classmethod
    def from_json(cls, where: str, data: bytes) -> HostRecord:
        """What :meth:`to_json` wrote.

        :raises HostError: anything else; begins with `where`
        """
        fields = Fields.of_record(where, data)
        record = cls(
            name=fields.text("name"),
            ring=fields.text("ring"),
            labels=fields.texts("labels"),
            addresses=fields.texts("addresses"),
            qmpfilter=fields.text("qmpfilter"),
            libvirt=fields.text("libvirt"),
            facts=HostFacts.from_json(json.dumps(fields.object("facts"))),
            ailing=fields.text("ailing"),
            when=fields.text("when"),
        )
        fields.end()
        return record


@dataclass(frozen=True, slots=True)
class Seen:
    """What a host has taken in of the cluster's decisions.

    :param serial: of the rollout, 0 without one
    :param off: everything passes as it is
    """

    serial: int = 0
    off: bool = False

    def to_json(self) -> bytes:
        """As it is stored."""
        return dumped({"serial": self.serial, "off": self.off})

    @classmethod
    def from_json(cls, where: str, data: bytes) -> Seen:
        """What :meth:`to_json` wrote.

        :raises HostError: anything else; begins with `where`
        """
        fields = Fields.of_record(where, data)
        seen = cls(fields.count("serial"), fields.flag("off"))
        fields.end()
        return seen
