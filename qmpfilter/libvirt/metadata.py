# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands of qmpfilter in a domain's metadata, which travels with the domain: its policy, and how it arrived.

Two namespaces, because libvirt keeps one element for each: the operator sets the policy, the daemon the arrival.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final, Self

from qmpfilter.errors import PolicyError
from qmpfilter.filter.policy import Enforcement, Mode
from qmpfilter.libvirt.domain import Element

__all__ = ["ARRIVAL_URI", "POLICY_PREFIX", "POLICY_URI", "Arrival", "DomainPolicy"]

POLICY_URI: Final = "urn:qmpfilter:policy:1"
POLICY_PREFIX: Final = "qmpfilter"
ARRIVAL_URI: Final = "urn:qmpfilter:arrival:1"
_ARRIVAL_PREFIX: Final = "qmpfilter-arrival"


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """What an operator wants for one domain: instead of the configuration's values, and more losses accepted.

    :param mode: None for the configuration's
    :param enforcement: None for the configuration's
    :param accepted: codes of losses
    """

    mode: Mode | None = None
    enforcement: Enforcement | None = None
    accepted: frozenset[str] = frozenset()

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> DomainPolicy:
        """What the element's attributes say.

        :raises PolicyError: one is not known, or has no such value
        """
        unknown = attributes.keys() - {"mode", "verdict", "accept"}
        if unknown:
            raise PolicyError(f"the domain's policy in its metadata: not known: {', '.join(sorted(unknown))}")
        try:
            mode, verdict = attributes.get("mode"), attributes.get("verdict")
            return cls(
                None if mode is None else Mode(mode),
                None if verdict is None else Enforcement(verdict),
                frozenset(attributes.get("accept", "").split()),
            )
        except ValueError as error:
            raise PolicyError(f"the domain's policy in its metadata: {error}") from error

    def element(self) -> Element:
        """What stands for it in metadata."""
        given = {
            "mode": self.mode,
            "verdict": self.enforcement,
            "accept": " ".join(sorted(self.accepted)) or None,
        }
        attributes = {name: str(value) for name, value in given.items() if value is not None}
        return Element(POLICY_URI, POLICY_PREFIX, "policy", attributes)


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
        return Element(ARRIVAL_URI, _ARRIVAL_PREFIX, "arrival", asdict(self))
