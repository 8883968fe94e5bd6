# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams with many vCPUs in L2, made of a recorded one that has a single vCPU.

Each vCPU has its own registers, VMCB12 and entries in vmdesc; everything else is as QEMU wrote it.
"""

from __future__ import annotations

from typing import NamedTuple

from qmpfilter.svm.legacy import SIZE_SUBSECTION_SVM
from qmpfilter.svm.vmcb import PAGE_SIZE, SAVE, SAVE_OFFSET
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DeviceSection, VmDescriptionReceived
from qmpfilter.wire.framing import BE32, BE64, SectionType
from tests.helpers.build import EOF, description, footer
from tests.helpers.fixtures import fixtures
from tests.helpers.parse import parse

__all__ = ["RecordedTail", "recorded"]

# Sections that each vCPU has; the first two stand together.
_PAIRED = ("cpu_common", "cpu")
_APIC = "apic"
_FIRST_ID = 1000
_STEP = 0x1000


class RecordedTail(NamedTuple):
    """A recording, cut where its tail begins.

    :param head: all bytes before the first device section
    :param sections: the device sections
    :param vmdesc: what describes them
    """

    head: bytes
    sections: list[DeviceSection]
    vmdesc: VmDescriptionReceived

    def of(self, vcpus: int) -> bytes:
        """The tail as that of a machine with so many vCPUs."""
        text, sections, entries = self.vmdesc.vmdesc.text, [], []
        devices = self.vmdesc.vmdesc.devices
        numbered = list(zip(self.sections, [text[one.start : one.end] for one in devices], strict=True))
        for position, (section, entry) in enumerate(numbered):
            if section.idstr == _PAIRED[0]:
                group = numbered[position : position + len(_PAIRED)]
            elif section.idstr == _APIC:
                group = [(section, entry)]
            elif section.idstr in _PAIRED:
                continue
            else:
                sections.append(section.raw)
                entries.append(entry)
                continue
            for index in range(vcpus):
                for one, told in group:
                    sections.append(_copy(one, index))
                    entries.append(told.replace(b'"instance_id": 0', b'"instance_id": %d' % index, 1))
        whole = text[: devices[0].start] + b", ".join(entries) + text[devices[-1].end :]
        return b"".join(sections) + EOF + description(whole)


def recorded(name: str) -> RecordedTail:
    """The recording of that name."""
    (stream,) = (fixture.file("stream") for fixture in fixtures() if fixture.name == name)
    events = parse(stream).events
    sections = [event for event in events if isinstance(event, DeviceSection)]
    (vmdesc,) = (event for event in events if isinstance(event, VmDescriptionReceived))
    return RecordedTail(stream[: sections[0].offset], sections, vmdesc)


def _copy(section: DeviceSection, index: int) -> bytes:
    """The section of another vCPU: with its number, an id of its own, and other registers."""
    section_id = section.section_id if not index else _FIRST_ID + len(_PAIRED) * index
    if index and section.idstr == _PAIRED[1]:
        section_id += 1
    if index and section.idstr == _APIC:
        section_id += _FIRST_ID * _FIRST_ID
    body = bytearray(section.raw[section.body : section.body_end])
    if section.idstr == cpu.IDSTR:
        for register in ("rip", "rsp", "tsc"):
            cpu.BLOCK.put(body, register, cpu.BLOCK.get(body, register) + index)
        _move_vmcb12(body, section, index)
    name = section.idstr.encode()
    head = bytes([SectionType.FULL]) + BE32.pack(section_id) + bytes([len(name)]) + name
    numbers = BE32.pack(index) + BE32.pack(section.version_id)
    return head + numbers + bytes(body) + footer(section_id)


def _move_vmcb12(body: bytearray, section: DeviceSection, index: int) -> None:
    nested = section.subsection(cpu.NESTED_STATE.name)
    assert nested is not None
    (child,) = nested.children
    assert child.payload_size == SIZE_SUBSECTION_SVM
    at = child.payload - section.body
    address = BE64.unpack_from(body, at)[0] + index * _STEP
    BE64.pack_into(body, at, address)
    page = at + SIZE_SUBSECTION_SVM - PAGE_SIZE
    SAVE.put(body, "rax", address, page + SAVE_OFFSET)
