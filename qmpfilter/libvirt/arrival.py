# SPDX-License-Identifier: GPL-2.0-or-later
"""How a domain came to its host: an element in its metadata, in a namespace of its own, because libvirt keeps one
element for each and the operator's policy has the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final, Self

from qmpfilter.libvirt.domain import Element

__all__ = ["NAMESPACE", "Arrival"]

NAMESPACE: Final = "urn:qmpfilter:arrival:1"
_PREFIX: Final = "qmpfilter-arrival"


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a domain came to the host where it is, or is about to.

    :param session: of the daemon there, whose report tells more
    :param at: UTC, ISO 8601
    :param host: its name
    :param version: of qmpfilter there
    :param records: a directory there with a file for each vCPU that was in L2: its svm2 record
    """

    session: str
    at: str
    host: str
    version: str
    records: str

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> Self | None:
        """What the element's attributes say, None if something is missing."""
        names = [one.name for one in fields(cls)]
        return cls(*(attributes[name] for name in names)) if all(name in attributes for name in names) else None

    def element(self) -> Element:
        """What stands for it in metadata."""
        return Element(NAMESPACE, _PREFIX, "arrival", asdict(self))
