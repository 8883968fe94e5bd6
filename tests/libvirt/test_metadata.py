# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain's policy and arrival, as elements and back."""

from __future__ import annotations

import pytest

from qmpfilter.errors import PolicyError
from qmpfilter.filter.policy import Enforcement, Mode
from qmpfilter.libvirt.domain import DomainXml
from qmpfilter.libvirt.metadata import ARRIVAL_URI, POLICY_URI, Arrival, DomainPolicy

XML = "<domain>\n  <name>guest</name>\n</domain>\n"


@pytest.mark.parametrize(
    "policy",
    [
        DomainPolicy(),
        DomainPolicy(Mode.OBSERVE),
        DomainPolicy(enforcement=Enforcement.WARN, accepted=frozenset({"lbr", "avic"})),
    ],
)
def test_a_policy(policy: DomainPolicy) -> None:
    attributes = DomainXml(DomainXml(XML).with_element(policy.element())).attributes(POLICY_URI)
    assert attributes is not None
    assert DomainPolicy.of(attributes) == policy


@pytest.mark.parametrize("attributes", [{"mode": "fast"}, {"verdict": "maybe"}, {"colour": "red"}])
def test_nonsense_is_no_policy(attributes: dict[str, str]) -> None:
    with pytest.raises(PolicyError, match="the domain's policy"):
        DomainPolicy.of(attributes)


def test_an_arrival() -> None:
    arrival = Arrival("20260301T142530-9f3a01bc", "2026-03-01T14:25:30+00:00", "b", "1", "/var/lib/qmpfilter/records")
    attributes = DomainXml(DomainXml(XML).with_element(arrival.element())).attributes(ARRIVAL_URI)
    assert attributes is not None
    assert Arrival.of(attributes) == arrival
    assert Arrival.of({"session": "x"}) is None
