# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings made small, with a map of where things stand in them.

Nearly all of a recording is RAM, whose pages are passed over: only a few records of each RAM section are kept.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

from qmpfilter.wire.events import (
    CommandReceived,
    DeviceSection,
    Event,
    Header,
    IterableEnd,
    IterableStart,
    MachineConfiguration,
    RamBlocks,
    RamRecords,
    VmDescriptionReceived,
)
from qmpfilter.wire.feed import NeedData
from qmpfilter.wire.framing import BE16, BE64, Command, SectionType
from qmpfilter.wire.parser import StreamParser
from qmpfilter.wire.vmsd import SubsectionAt
from tests.helpers.fixtures import fixtures

__all__ = ["Recording", "names", "recording"]

_PAGE = 4096
_KEPT_RECORDS = 4
_KEPT_BYTES = 2 * _PAGE
_FULL_HEADER = 6


@dataclass
class Recording:
    """A small stream.

    :ivar parts: (start, end) of each section and command, package contents apart
    :ivar regions: stretches to damage with preference, by name
    :ivar numbers: (offset, bytes) of lengths, counts and ids, big-endian
    """

    name: str
    data: bytes
    parts: list[tuple[int, int]] = field(default_factory=list)
    regions: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    numbers: list[tuple[int, int]] = field(default_factory=list)

    def region(self, name: str, start: int, end: int) -> None:
        """Note a stretch."""
        self.regions.setdefault(name, []).append((start, end))


@functools.cache
def names() -> list[str]:
    """Of all recordings that have a stream."""
    return sorted(item.name for item in fixtures(role="stream"))


def recording(name: str) -> Recording:
    """Load one, make it small, and map it."""
    (found,) = (item for item in fixtures(role="stream") if item.name == name)
    small = b"".join(_shrunk(found.read("stream")))
    result = Recording(name, small)
    opened = 0
    for event in _events(small):
        if isinstance(event, IterableStart):
            opened = event.offset
        _map(result, event, opened)
    devices = [start for start, _ in result.regions["device"]]
    result.region("tail", min(devices), len(small))
    return result


def _events(data: bytes) -> Iterator[Event]:
    parser = StreamParser()
    parser.receive_data(data)
    for ended in (False, True):
        if ended:
            parser.receive_eof()
        while not isinstance(event := parser.next_event(), NeedData):
            yield event


def _shrunk(data: bytes) -> Iterator[bytes]:
    body = bytearray()
    for event in _events(data):
        if isinstance(event, RamRecords):
            body += event.raw
            continue
        if body:
            yield b"".join(_some_records(bytes(body)))
            body.clear()
        yield bytes(event.raw)


def _some_records(body: bytes) -> Iterator[bytes]:
    """The first records of a RAM body, those that stand for no page, and now and then another."""
    at = size = kept = seen = 0
    while at < len(body):
        flags = BE64.unpack_from(body, at)[0] & (_PAGE - 1)
        end = at + 8
        if flags & 0x14A:
            end += 0 if flags & 0x20 else 1 + body[end]
            if flags & 0x02:
                end += 1
            elif flags & 0x08:
                end += _PAGE
            elif flags & 0x40:
                end += 3 + BE16.unpack_from(body, end + 1)[0]
            seen += 1
            wanted = not flags & 0x20 or seen % 64 == 0
            if kept < _KEPT_RECORDS or (wanted and size < _KEPT_BYTES):
                kept, size = kept + 1, size + end - at
                yield body[at:end]
        else:
            yield body[at:end]
        at = end


def _map(result: Recording, event: Event, opened: int) -> None:
    start, end = event.offset, event.offset + len(event.raw)
    match event:
        case Header():
            result.region("head", start, end)
            result.numbers += [(0, 4), (4, 4)]
        case MachineConfiguration():
            result.region("head", start, end)
            result.numbers.append((start + 1, 4))
        case CommandReceived():
            result.parts.append((start, end))
            result.region("head", start, end)
            result.numbers += [(start + 1, 2), (start + 3, 2)]
            if event.command is Command.PACKAGED:
                result.numbers.append((start + 5, 4))
        case IterableStart():
            result.region("head", start, end)
            result.numbers.append((start + 1, 4))
            if event.type is SectionType.START:
                result.numbers += [(start + 5, 1), (end - 8, 4), (end - 4, 4)]
        case RamBlocks():
            result.region("head", start, end)
            result.numbers.append((start, 8))
            at = start + 8
            for block in event.blocks:
                result.numbers += [(at, 1), (at + 1 + len(block.name), 8)]
                at += 9 + len(block.name)
        case RamRecords():
            result.region("ram", start, end)
            result.numbers.append((start, 8))
        case IterableEnd():
            result.region("head", start, end)
            result.numbers.append((start + 1, 4))
            result.parts.append((opened, end))
        case DeviceSection():
            _map_device(result, event)
        case VmDescriptionReceived():
            result.region("vmdesc", start, end)
            result.numbers += [(start + 1, 4)] * 4
        case _:
            pass


def _map_device(result: Recording, event: DeviceSection) -> None:
    start, body, end = event.offset, event.offset + event.body, event.offset + len(event.raw)
    result.parts.append((start, end))
    result.region("device", start, end)
    result.region("head", start, body)
    result.region("head", end - 5, end)
    result.numbers += [(start + 1, 4), (start + 5, 1), (body - 8, 4), (body - 4, 4), (end - 4, 4)]
    if event.idstr == "cpu":
        result.region("cpu", start, end)
    for sub in event.subsections:
        _map_subsection(result, start, sub)


def _map_subsection(result: Recording, base: int, sub: SubsectionAt) -> None:
    result.parts.append((base + sub.start, base + sub.end))
    result.region("nested" if "nested" in sub.name else "subsection", base + sub.start, base + sub.end)
    result.region("head", base + sub.start, base + sub.payload)
    result.numbers += [(base + sub.start + 1, 1), (base + sub.payload - 4, 4)]
    if sub.name == "cpu/nested_state":
        result.numbers += [(base + sub.payload, 2), (base + sub.payload + 2, 2), (base + sub.payload + 4, 4)]
    for child in sub.children:
        _map_subsection(result, base, child)
