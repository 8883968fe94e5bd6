# SPDX-License-Identifier: GPL-2.0-or-later
"""Subsections, and the sections that are known by heart."""

from __future__ import annotations

import pytest

from qmpfilter.wire import cpu
from qmpfilter.wire.devices import KNOWN, known
from qmpfilter.wire.events import DelimitedBy, DeviceSection
from qmpfilter.wire.vmsd import SubsectionAt, header_size
from tests.helpers import build

#: Sizes seen in recorded streams, without subsections.
SIZES = {("timer", 2): 24, ("cpu_common", 1): 8, ("cpu", 12): 1817, ("kvm-tpr-opt", 1): 144, ("apic", 3): 181}


@pytest.mark.parametrize("name", ["cpu/nested_state", "x"])
def test_header_size(name: str) -> None:
    assert header_size(name) == len(build.subsection(name))


def test_known_devices() -> None:
    assert {key: vmsd.size for key, vmsd in KNOWN.items()} == SIZES
    assert all(key == (vmsd.idstr, vmsd.version) for key, vmsd in KNOWN.items())


@pytest.mark.parametrize(("idstr", "version"), [("timer", 1), ("cpu", 11), ("cpu", 13), ("kvmclock", 1)])
def test_other_versions_are_not_known(idstr: str, version: int) -> None:
    assert known(idstr, version) is None


def test_subsections_of_known_devices() -> None:
    assert {
        idstr: [(sub.name, sub.layout.size) for sub in vmsd.subsections.values()]
        for (idstr, _), vmsd in KNOWN.items()
        if vmsd.subsections and idstr != "cpu"
    } == {
        "cpu_common": [("cpu_common/exception_index", 4), ("cpu_common/crash_occurred", 1)],
        "apic": [("apic_sipi", 8)],
    }
    assert KNOWN["cpu", 12].subsections is cpu.SUBSECTIONS


def test_payload_size() -> None:
    child = SubsectionAt("child", 1, 40, 51, 60)
    assert SubsectionAt("parent", 1, 10, 22, 60, (child,)).payload_size == 18
    assert child.payload_size == 9


def test_section_finds_its_subsections() -> None:
    inner = SubsectionAt("inner", 1, 30, 41, 50)
    subs = (
        SubsectionAt("a", 1, 20, 27, 50, (inner,)),
        SubsectionAt("b", 1, 50, 57, 60),
        SubsectionAt("b", 1, 60, 67, 70),
    )
    section = DeviceSection(0, b"", 1, "x", 0, 1, 15, 70, DelimitedBy.LAYOUT, subs)
    assert section.subsection("a") is subs[0]
    assert section.subsection("b") is subs[1]
    assert section.subsection("inner") is None
