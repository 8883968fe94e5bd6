# SPDX-License-Identifier: GPL-2.0-or-later
"""What a domain itself asks for: an element in its metadata, which travels with its migrations.

::

    <metadata>
      <qmpfilter:policy xmlns:qmpfilter="urn:qmpfilter:policy:1" mode="observe" verdict="warn" accept="lbr hyperv"/>
    </metadata>

Each attribute may be missing: then what the host or the command says holds. They are attributes because libvirt takes
the namespace away from what it gives out (seen with 9.0 and 11.3).
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from qmpfilter.errors import PolicyError
from qmpfilter.filter.policy import Enforcement, Mode, Policy

__all__ = ["NAMESPACE", "PREFIX", "DomainPolicy"]

NAMESPACE: Final = "urn:qmpfilter:policy:1"
PREFIX: Final = "qmpfilter"
_ELEMENT: Final = "policy"


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """What is asked for; None of what is not.

    :param mode: what is done to its streams
    :param enforcement: what follows from the verdict
    :param accepted: codes of losses that are accepted besides
    """

    mode: Mode | None = None
    enforcement: Enforcement | None = None
    accepted: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self != DomainPolicy()

    def __str__(self) -> str:
        said = [f"{name} {value}" for name, value in self._attributes().items()]
        return ", ".join(said) or "nothing of its own"

    def to_xml(self) -> str:
        """The element, without its namespace."""
        return ElementTree.tostring(ElementTree.Element(_ELEMENT, self._attributes()), encoding="unicode")

    @classmethod
    def from_xml(cls, text: str) -> DomainPolicy:
        """From the element, with or without its namespace.

        :raises PolicyError: it is no policy, or one of a newer version
        """
        try:
            element = ElementTree.fromstring(text)
            if element.tag not in (_ELEMENT, f"{{{NAMESPACE}}}{_ELEMENT}"):
                raise ValueError(f"expected {_ELEMENT}, found {element.tag}")
            return cls.from_attributes(element.attrib)
        except (ValueError, ElementTree.ParseError) as error:
            raise PolicyError(f"the policy in the domain's metadata cannot be understood: {error}") from error

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str]) -> DomainPolicy:
        """From those of the element.

        :raises PolicyError: one is not known, or has no such value
        """
        told = dict(attributes)
        try:
            mode, verdict = told.pop("mode", None), told.pop("verdict", None)
            accepted = frozenset(told.pop("accept", "").split())
            if told:
                raise ValueError(f"{min(told)} is not known")
            return cls(
                None if mode is None else Mode(mode),
                None if verdict is None else Enforcement(verdict),
                accepted,
            )
        except ValueError as error:
            raise PolicyError(f"the policy in the domain's metadata cannot be understood: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """For :func:`json.dumps`."""
        return {
            "mode": None if self.mode is None else self.mode.value,
            "verdict": None if self.enforcement is None else self.enforcement.value,
            "accept": sorted(self.accepted),
        }

    def applied(self, policy: Policy, given: Collection[str] = ()) -> Policy:
        """A policy as this domain asks for it.

        :param given: fields of it that somebody said on purpose, which hold
        :raises PolicyError: see :class:`~qmpfilter.filter.policy.Policy`
        """
        asked = {"mode": self.mode, "enforcement": self.enforcement}
        changed = {name: value for name, value in asked.items() if value is not None and name not in given}
        return replace(policy, accepted=policy.accepted | self.accepted, **changed)  # type: ignore[arg-type]  # each has its own type

    def _attributes(self) -> dict[str, str]:
        told = {
            "mode": None if self.mode is None else self.mode.value,
            "verdict": None if self.enforcement is None else self.enforcement.value,
            "accept": " ".join(sorted(self.accepted)),
        }
        return {name: value for name, value in told.items() if value}
