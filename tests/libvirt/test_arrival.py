# SPDX-License-Identifier: GPL-2.0-or-later
"""How a domain came, as an element and back."""

from __future__ import annotations

from qmpfilter.libvirt.arrival import NAMESPACE, Arrival
from qmpfilter.libvirt.domain import DomainXml

XML = "<domain>\n  <name>guest</name>\n</domain>\n"


def test_an_arrival() -> None:
    arrival = Arrival("20260301T142530-9f3a01bc", "2026-03-01T14:25:30+00:00", "b", "1", "/var/lib/qmpfilter/records")
    attributes = DomainXml(DomainXml(XML).with_element(arrival.element())).attributes(NAMESPACE)
    assert attributes is not None
    assert Arrival.of(attributes) == arrival
    assert Arrival.of({"session": "x"}) is None
