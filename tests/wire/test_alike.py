# SPDX-License-Identifier: GPL-2.0-or-later
"""What is worked out once for many vCPUs is what would be worked out for each of them alone."""

from __future__ import annotations

import json

import msgspec
import pytest

from qmpfilter.errors import LayoutError
from qmpfilter.wire.footers import SectionHeader, section_header
from qmpfilter.wire.sections import Divisions, by_layout
from qmpfilter.wire.vmdesc import Device, VmDescription, shape_of
from qmpfilter.wire.vmdesc_entry import DeviceEntry
from tests.helpers import build

BODY = 17
VCPUS = [build.cpu(number, number, build.nested_svm()) for number in range(3)]
# A name, an instance or a field that is not the others'.
OTHERS = [
    build.cpu(10, 10),
    build.cpu(11, 2_000_000_000, build.nested_svm()),
    build.Device(12, "cpu2", VCPUS[0].vmsd, 0, 12),
    build.opaque(13, "cpu", bytes(10), 13),
]


def text_of(devices: list[build.Device], comma: str = ", ") -> bytes:
    entries = comma.join(json.dumps(device.entry()) for device in devices)
    return b'{"page_size": 4096, "devices": [%b]}' % entries.encode()


def but_instance(device: Device) -> DeviceEntry:
    return msgspec.structs.replace(device.entry, instance_id=0)


def alone(text: bytes, device: Device) -> Device:
    """The device of a vmdesc that has nothing but its entry."""
    head = b'{"page_size": 4096, "devices": ['
    (one,) = VmDescription.parse(head + text[device.start : device.end] + b"]}").devices
    return one


@pytest.mark.parametrize("comma", [", ", ",", " ,\n "])
def test_entries_that_differ_in_their_instance(comma: str) -> None:
    devices = [*VCPUS, *OTHERS, *VCPUS]
    text = text_of(devices, comma)
    found = VmDescription.parse(text).devices
    assert [(one.name, one.instance_id) for one in found] == [(one.idstr, one.instance_id) for one in devices]
    for one in found:
        same = alone(text, one)
        assert (one.size, but_instance(one)) == (same.size, but_instance(same))
        assert shape_of(one, BODY) == shape_of(same, BODY)
        assert json.loads(text[one.start : one.end])["instance_id"] == one.instance_id


@pytest.mark.parametrize("instance", ["007", "-1", "1.5", '"1"', "1e3", "true", "1" * 12])
def test_an_instance_of_another_kind_is_decoded_as_ever(instance: str) -> None:
    text = text_of(VCPUS)
    changed = text.replace(b'"instance_id": 2', b'"instance_id": ' + instance.encode())
    try:
        number = json.loads(instance)
    except ValueError:
        number = None
    if isinstance(number, int) and not isinstance(number, bool):
        assert VmDescription.parse(changed).devices[2].instance_id == number
    else:
        with pytest.raises(LayoutError):
            VmDescription.parse(changed)


def test_an_entry_longer_than_what_is_decoded_at_first() -> None:
    long = build.Device(1, "x", build.Vmsd("x", tuple(build.field(f"f{number}", bytes(4)) for number in range(4000))))
    text = text_of([long, *VCPUS])
    assert len(text) > 1 << 17
    assert [one.name for one in VmDescription.parse(text).devices] == ["x", "cpu", "cpu", "cpu"]
    for cut in (1 << 14, (1 << 14) + 40, 1 << 17):
        with pytest.raises(LayoutError):
            VmDescription.parse(text[:cut])


def divided(device: build.Device, divisions: Divisions | None) -> object:
    data = device.section()
    header = section_header(data, 0)
    assert isinstance(header, SectionHeader)
    return by_layout(data, 0, header, 0, divisions)


def test_sections_are_divided_as_they_would_be_without_those_before() -> None:
    divisions = Divisions()
    payload = build.Vmsd("cpu/pdptrs", (build.field("all", bytes(32)),))
    longer = build.Vmsd("cpu/pdptrs", (build.field("all", bytes(32)),), version=2)
    unknown = build.Vmsd("cpu/of_tomorrow", (build.field("all", b"x"),))
    nested = build.nested_svm()
    for number, subsections in enumerate(
        [(), (nested,), (nested,), (payload, nested), (nested, payload), (longer,), (unknown,), (nested, unknown), ()]
    ):
        device = build.cpu(number, number, *subsections)
        assert divided(device, divisions) == divided(device, None)


@pytest.mark.parametrize("size", [0, 1, 1840, 1860, 5990, -6, -5, -1])
def test_a_part_of_a_section_is_no_section(size: int) -> None:
    divisions = Divisions()
    divided(VCPUS[0], divisions)
    data = VCPUS[1].section()
    header = section_header(data, 0)
    assert isinstance(header, SectionHeader)
    assert by_layout(data[:size], 0, header, 0, divisions) == by_layout(data[:size], 0, header, 0)
