# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a device section ends: by its layout, by vmdesc, by its footer."""

from __future__ import annotations

import dataclasses

import pytest

from qmpfilter.errors import FramingError, LayoutError
from qmpfilter.wire.events import DelimitedBy, DeviceSection
from qmpfilter.wire.footers import SectionHeader, section_header
from qmpfilter.wire.sections import Ending, SeenSections, by_footers, by_layout, by_vmdesc, check_against_vmdesc
from qmpfilter.wire.vmdesc import VmDescription
from qmpfilter.wire.vmsd import SubsectionAt
from tests.helpers import build
from tests.helpers.parse import raises_at

BASE = 5000
TSC = build.Vmsd("cpu/tsc_khz", (build.field("env.tsc_khz", bytes(8), "int64"),))
PKRU = build.Vmsd("cpu/pkru", (build.field("env.pkru", bytes(4), "uint32"),))
NEW = build.Vmsd("cpu/from_the_future", (build.field("x", b"future" * 3),))
NEWER = dataclasses.replace(NEW, version=2)
CPU_FIELDS_END = 17 + 1817

#: Subsections after the fields of a `cpu` section, and how they are told.
TSC_AT = SubsectionAt("cpu/tsc_khz", 1, CPU_FIELDS_END, CPU_FIELDS_END + 17, CPU_FIELDS_END + 25)
PKRU_AT = SubsectionAt("cpu/pkru", 1, CPU_FIELDS_END + 25, CPU_FIELDS_END + 39, CPU_FIELDS_END + 43)


def head(data: bytes, at: int = 0) -> SectionHeader:
    header = section_header(data, at)
    assert isinstance(header, SectionHeader)
    return header


def layout_end(device: build.Device, cut: int | None = None) -> tuple[int, tuple[SubsectionAt, ...]] | Ending:
    """By layout, of a section that begins not at the start of the data."""
    data = b"before" + device.section() + build.EOF
    return by_layout(data[: None if cut is None else 6 + cut], 6, head(data, 6), BASE)


@pytest.mark.parametrize(
    ("device", "subsections"),
    [
        (build.timer(), ()),
        (build.cpu_common(3), ()),
        (build.opaque(3, "apic", bytes(181), version=3), ()),
        (build.opaque(3, "apic", bytes(181) + build.subsection("apic_sipi", bytes(8)), version=3),
         (SubsectionAt("apic_sipi", 1, 18 + 181, 18 + 181 + 15, 18 + 204),)),
        (build.cpu(3, 7, TSC, PKRU), (TSC_AT, PKRU_AT)),
        # QEMU reads them in any order
        (build.cpu(3, 7, PKRU, TSC), (
            SubsectionAt("cpu/pkru", 1, CPU_FIELDS_END, CPU_FIELDS_END + 14, CPU_FIELDS_END + 18),
            SubsectionAt("cpu/tsc_khz", 1, CPU_FIELDS_END + 18, CPU_FIELDS_END + 35, CPU_FIELDS_END + 43),
        )),
        # the child's name begins with its parent's, but not with a slash after it
        (build.cpu(3, 7, build.Vmsd("cpu/cet", (build.field("f", bytes(16)),),
                                    (build.Vmsd("cpu/cet_shstk", (build.field("f", bytes(40)),)),))),
         (SubsectionAt("cpu/cet", 1, CPU_FIELDS_END, CPU_FIELDS_END + 13, CPU_FIELDS_END + 88, (
             SubsectionAt("cpu/cet_shstk", 1, CPU_FIELDS_END + 29, CPU_FIELDS_END + 48, CPU_FIELDS_END + 88),
         )),)),
    ],
)  # fmt: skip
def test_layout(device: build.Device, subsections: tuple[SubsectionAt, ...]) -> None:
    assert layout_end(device) == (6 + len(device.section()) - 5, subsections)


@pytest.mark.parametrize("device", [build.timer(), build.cpu(3, 7, build.nested_svm(), TSC)])
def test_layout_needs_the_whole_section(device: build.Device) -> None:
    size = len(device.section())
    for cut in range(len(device.idstr) + 14, size):
        assert layout_end(device, cut) is Ending.INCOMPLETE, cut
    assert layout_end(device, size) == layout_end(device)


@pytest.mark.parametrize(
    "device",
    [
        build.opaque(3, "PCIBUS", bytes(9)),
        build.opaque(3, "timer", bytes(24), version=3),
        build.opaque(3, "timer", b"\1" * 25, version=2),
        build.cpu(3, 7, NEW),
        build.cpu(3, 7, TSC, NEW),
        build.cpu(3, 7, dataclasses.replace(TSC, version=2)),
        build.cpu(3, 7, build.Vmsd("cpu/kvm_nested_state/svm", (build.field("f", bytes(4104)),))),
    ],
)
def test_layout_is_not_known(device: build.Device) -> None:
    assert layout_end(device) is Ending.UNKNOWN


@pytest.mark.parametrize(
    ("device", "at"),
    [
        (build.cpu(3, 7, short=8), CPU_FIELDS_END),
        (build.cpu(3, 7, TSC, build.Vmsd("cpu/pkru", (build.field("f", bytes(5)),))), CPU_FIELDS_END + 43),
    ],
)
def test_departing_from_a_binding_layout(device: build.Device, at: int) -> None:
    data = device.section() + b"\xff" * 20
    with raises_at(LayoutError, BASE + at, f"footer 7e 00 00 00 03 of section '{device.idstr}'"):
        by_layout(data, 0, head(data), BASE)


def test_subsection_twice() -> None:
    with raises_at(LayoutError, BASE + 6 + CPU_FIELDS_END + 25, "each subsection once"):
        layout_end(build.cpu(3, 7, TSC, TSC))


# --- by vmdesc


def divided(*devices: build.Device, described: tuple[build.Device, ...] | None = None) -> list[DeviceSection]:
    """The sections of a tail with EOF; by default vmdesc lists the same devices."""
    data = b"".join(device.section() for device in devices) + build.EOF
    text = build.vmdesc(devices if described is None else described)
    sections, end = by_vmdesc(data, 0, VmDescription.parse(text).devices, BASE)
    assert end == len(data) - 1
    assert b"".join(section.raw for section in sections) == data[:end]
    return sections


def how(sections: list[DeviceSection]) -> list[tuple[str, str]]:
    return [(section.idstr, section.delimited_by.name) for section in sections]


#: A body that holds a footer of its own section and then a whole other section.
FORGED = build.opaque(8, "serial", b"text" + build.footer(8) + build.cpu_common(8, 5).section() + b"more text")
BUS = build.opaque(9, "PCIBUS", b"\0\0\0\x03abc")

#: vmdesc tells only the first element's size of an array whose elements differ.
UNEVEN = build.Device(
    11, "capabilities", build.Vmsd("c", (build.Field("names", b"x-ignore-sharedmapped-ram", array_len=2, size=16),))
)


def test_vmdesc() -> None:
    sections = divided(build.timer(), BUS, build.cpu(4, 0, TSC))
    assert how(sections) == [("timer", "VMDESC"), ("PCIBUS", "VMDESC"), ("cpu", "VMDESC")]
    assert [section.offset - BASE for section in sections] == [0, 48, 48 + 32]
    assert [section.subsections for section in sections] == [(), (), (TSC_AT,)]
    assert sections[1].raw[sections[1].body : sections[1].body_end] == b"\0\0\0\x03abc"


def test_forged_sections_inside_a_body() -> None:
    assert how(divided(FORGED, BUS)) == [("serial", "VMDESC"), ("PCIBUS", "VMDESC")]


@pytest.mark.parametrize("after", [(), (BUS,), (FORGED, BUS)])
def test_wrong_size_of_an_uneven_array(after: tuple[build.Device, ...]) -> None:
    """The footer counts that is followed by the header which vmdesc lists next, or by EOF."""
    sections = divided(UNEVEN, *after)
    assert how(sections) == [("capabilities", "FOOTER"), *((device.idstr, "VMDESC") for device in after)]
    assert sections[0].raw == UNEVEN.section()


def test_unknown_subsections_of_a_known_section() -> None:
    (section,) = divided(build.cpu(4, 0, NEW, TSC))
    assert section.delimited_by is DelimitedBy.VMDESC
    assert [(sub.name, sub.end - sub.start) for sub in section.subsections] == [
        ("cpu/from_the_future", 25 + 18),
        ("cpu/tsc_khz", 25),
    ]


SHORT_TIMER = build.Device(0, "timer", build.Vmsd("timer", (build.field("f", bytes(23)),), version=2), version=2)
CPU = build.cpu(4, 0, TSC)
OTHER_SUBSECTION = build.cpu(4, 0, build.Vmsd("cpu/tsc_khx", TSC.fields))


@pytest.mark.parametrize(
    ("devices", "described", "at", "expected"),
    [
        ((BUS,), (build.timer(),), 0, "section 'timer' 0, the next one in vmdesc"),
        ((BUS,), (build.opaque(9, "PCIBUS", bytes(7), 1),), 0, "section 'PCIBUS' 1, the next one in vmdesc"),
        ((BUS,), (BUS, BUS), 32, "section 'PCIBUS' 0, the next one in vmdesc"),
        ((BUS, FORGED), (build.opaque(9, "PCIBUS", bytes(8)), build.timer()), 0, "section 'PCIBUS' 0 to end"),
        # known sections must be as vmdesc says
        ((build.timer(),), (SHORT_TIMER,), 0, "section 'timer' 0 of 23 bytes"),
        ((CPU,), (build.cpu(4, 0),), 0, "section 'cpu' 0 of 1817 bytes"),
        ((CPU,), (OTHER_SUBSECTION,), 0, "cpu/tsc_khx (25)"),
        ((build.cpu(4, 0, NEW),), (build.cpu(4, 0, NEWER),), 17 + 1817, "as vmdesc lists"),
    ],
)  # fmt: skip
def test_vmdesc_disagrees(
    devices: tuple[build.Device, ...], described: tuple[build.Device, ...], at: int, expected: str
) -> None:
    with raises_at(LayoutError, BASE + at, expected):
        divided(*devices, described=described)


@pytest.mark.parametrize(("listed", "expected"), [
    (CPU, None),
    (build.cpu(4, 1, TSC), "section 'cpu' 1 of 1842 bytes"),
    (build.cpu(4, 0), "section 'cpu' 0 of 1817 bytes"),
    (OTHER_SUBSECTION, "cpu/tsc_khx (25)"),
    (build.cpu(4, 0, build.Vmsd("cpu/pkru", (build.field("f", bytes(11)),))), "cpu/pkru (25)"),
])  # fmt: skip
def test_check_against_vmdesc(listed: build.Device, expected: str | None) -> None:
    told = by_footers(CPU.section(), 0, head(CPU.section()), BASE)
    assert told is not None
    (device,) = VmDescription.parse(build.vmdesc([listed])).devices
    if expected is None:
        check_against_vmdesc(told, device)
    else:
        with raises_at(LayoutError, BASE, expected):
            check_against_vmdesc(told, device)


# --- by footers


def found_by_footers(data: bytes) -> DeviceSection | None:
    return by_footers(data, 0, head(data), BASE)


@pytest.mark.parametrize("after", [b"", build.EOF, build.command(5), BUS.section()])
def test_footer_that_something_follows(after: bytes) -> None:
    device = build.opaque(8, "serial", b"x" + build.footer(8) + b"\x09" + build.footer(8) + b"\x04\0\0")
    section = found_by_footers(device.section() + after)
    assert section is not None
    assert (section.raw, section.delimited_by) == (device.section(), DelimitedBy.FOOTER)


@pytest.mark.parametrize("device", [BUS, build.timer(), CPU])
def test_no_footer_in_sight(device: build.Device) -> None:
    assert found_by_footers(device.section()[:-1]) is None


def test_without_vmdesc_a_forged_footer_counts() -> None:
    section = found_by_footers(FORGED.section() + build.EOF)
    assert section is not None
    assert section.raw.endswith(b"text" + build.footer(8))


@pytest.mark.parametrize(
    ("subsections", "told"),
    [
        ((NEW,), [("cpu/from_the_future", 25 + 18)]),
        ((NEW, TSC), [("cpu/from_the_future", 25 + 18), ("cpu/tsc_khz", 25)]),
        ((TSC, NEW, PKRU), [("cpu/tsc_khz", 25), ("cpu/from_the_future", 25 + 18), ("cpu/pkru", 18)]),
        ((NEW, build.nested_svm()), [("cpu/from_the_future", 25 + 18), ("cpu/nested_state", 4164)]),
        ((build.Vmsd("cpu/\x1b[2J"),), [("a subsection without a printable name", 14)]),
    ],
)
def test_unknown_subsections_are_resynchronised(
    subsections: tuple[build.Vmsd, ...], told: list[tuple[str, int]]
) -> None:
    device = build.cpu(4, 0, *subsections)
    section = found_by_footers(device.section() + build.EOF)
    assert section is not None
    assert (section.raw, section.delimited_by) == (device.section(), DelimitedBy.FOOTER)
    assert [(sub.name, sub.end - sub.start) for sub in section.subsections] == told
    assert section.subsections[0].start == CPU_FIELDS_END
    assert section.subsections[-1].end == section.body_end


# --- no section twice


def section_of(device: build.Device) -> DeviceSection:
    section = found_by_footers(device.section())
    assert section is not None
    return section


@pytest.mark.parametrize(
    ("second", "at", "expected"),
    [
        (build.opaque(5, "x", b""), 0, "each device section once"),
        (build.opaque(4, "y", b""), 1, "a section_id that no other"),
    ],
)
def test_sections_come_once(second: build.Device, at: int, expected: str) -> None:
    told = SeenSections()
    told.add(section_of(build.opaque(4, "x", b"")))
    copied = told.copy()
    copied.add(section_of(build.opaque(5, "x", b"", instance_id=1)))
    with raises_at(FramingError, BASE + at, expected):
        told.add(section_of(second))
