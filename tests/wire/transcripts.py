# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole streams, line by line: the bytes, and the one event that stands for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from qmpfilter.wire.events import (
    CommandReceived,
    DelimitedBy,
    DeviceSection,
    Event,
    Header,
    IterableData,
    IterableEnd,
    IterableStart,
    MachineConfiguration,
    PackageEnd,
    RamBlock,
    RamBlocks,
    RamRecords,
    SectionsEnd,
    SectionsHeld,
    VmDescriptionReceived,
)
from qmpfilter.wire.framing import BE64, Command, SectionType
from qmpfilter.wire.vmdesc import VmDescription
from qmpfilter.wire.vmsd import SubsectionAt
from tests.helpers import build

__all__ = ["TRANSCRIPTS", "Line", "expected_events", "stream"]

START, PART, END = SectionType.START, SectionType.PART, SectionType.END
LAYOUT, VMDESC, FOOTER = DelimitedBy.LAYOUT, DelimitedBy.VMDESC, DelimitedBy.FOOTER

Expect = Callable[[int, bytes], Event]
Line = tuple[bytes, Expect]


def stream(lines: Sequence[Line]) -> bytes:
    """The bytes of a transcript."""
    return b"".join(raw for raw, _ in lines)


def expected_events(lines: Sequence[Line]) -> list[Event]:
    """Its events."""
    at = 0
    events: list[Event] = []
    for raw, expect in lines:
        events.append(expect(at, raw))
        at += len(raw)
    return events


def told(kind: Callable[..., Event], *fields: Any, **named: Any) -> Expect:
    """An event of that kind with these fields after offset and raw."""
    return lambda at, raw: kind(at, raw, *fields, **named)


def command(code: Command, payload: bytes = b"") -> Line:
    return build.command(code, payload), told(CommandReceived, code, payload)


def iterable(kind: SectionType, *body: Line, section_id: int = build.RAM_ID, idstr: str = "ram",
             version: int = 4) -> tuple[Line, ...]:  # fmt: skip
    """A START, PART or END section around the lines of its body."""
    starts = kind is START
    head = build.head(kind, section_id, idstr, 0, version) if starts else build.resumed(kind, section_id)
    return (
        (head, told(IterableStart, kind, section_id, idstr, 0, version)),
        *body,
        (build.footer(section_id), told(IterableEnd, section_id, idstr)),
    )


def device(one: build.Device, how: DelimitedBy, *subsections: SubsectionAt) -> Line:
    body = 14 + len(one.idstr)
    return one.section(), told(
        DeviceSection,
        one.section_id,
        one.idstr,
        one.instance_id,
        one.version,
        body,
        body + len(one.body),
        how,
        subsections,
    )


def held(*lines: Line, ahead: int | None = None) -> tuple[Line, ...]:
    """Sections of which only vmdesc tells where they end.

    :param ahead: so much of them passes before, all if None
    """
    contents = stream(lines)
    return (b"", lambda at, _: SectionsHeld(at, contents[:ahead])), *lines


def described(*devices: build.Device, old: bool = False) -> tuple[Line, Line]:
    """EOF and vmdesc."""
    text = build.vmdesc(devices, old=old)

    def received(at: int, raw: bytes) -> Event:
        return VmDescriptionReceived(at, raw, VmDescription.parse(text, at + 5))

    return (build.EOF, told(SectionsEnd)), (build.description(text), received)


HEADER: Line = (build.header(), told(Header, 3))
MACHINE: Line = (build.configuration(), told(MachineConfiguration, build.MACHINE))
PC_RAM: Line = (
    build.mem_size(0x4000, build.row("pc.ram", 0x3000), build.row("pc.bios", 0x1000)),
    told(RamBlocks, 0x4000, (RamBlock("pc.ram", 0x3000), RamBlock("pc.bios", 0x1000))),
)
EOS: Line = (build.EOS, told(RamRecords))
SWITCHOVER = command(Command.SWITCHOVER_START)

TIMER = build.timer()
BUS = build.opaque(9, "PCIBUS", b"\0\0\0\x03abc")
STATE = build.opaque(41, "globalstate", b"running\0")
NESTED_CPU = build.cpu(4, 0, build.nested_svm())

PRECOPY: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    command(Command.OPEN_RETURN_PATH),
    command(Command.PING, b"\0\0\0\1"),
    *iterable(START, PC_RAM, EOS),
    *iterable(PART, EOS),
    *iterable(
        PART,
        (
            build.zero(0, "pc.ram") + build.zero(0x1000) + build.zero(0x2000),
            told(RamRecords, "pc.ram", zero=3),
        ),
        (build.zero(0, "pc.bios"), told(RamRecords, "pc.bios", zero=1)),
        EOS,
    ),
    SWITCHOVER,
    *iterable(END, (build.zero(0, "pc.ram"), told(RamRecords, "pc.ram", zero=1)), EOS),
    device(TIMER, LAYOUT),
    *held(device(BUS, VMDESC), device(build.cpu_common(3), VMDESC), device(STATE, VMDESC)),
    *described(TIMER, BUS, build.cpu_common(3), STATE),
)

#: A page whose content looks like the end of its section.
PAGES: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    *iterable(START, PC_RAM, EOS),
    *iterable(
        END,
        (
            build.page(0x1000, "pc.ram", build.EOS + build.footer(2) + build.EOF) + build.zero(0),
            told(RamRecords, "pc.ram", normal=1, zero=1),
        ),
        EOS,
    ),
    *described(),
)

#: Nothing has to be held; QEMU up to 8.1 writes no `configuration` into vmdesc.
KNOWN_ONLY: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    *iterable(START, PC_RAM, EOS),
    *iterable(END, EOS),
    device(TIMER, LAYOUT),
    device(build.cpu_common(3), LAYOUT),
    *described(TIMER, build.cpu_common(3), old=True),
)

#: A vCPU behind a section that nobody knows.
LATE_VCPU: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    *iterable(START, PC_RAM, EOS),
    *iterable(END, EOS),
    *held(
        device(BUS, VMDESC),
        device(build.cpu(4, 0), VMDESC),
        device(STATE, VMDESC),
        ahead=len(BUS.section()),
    ),
    *described(BUS, build.cpu(4, 0), STATE),
)

#: A vCPU in L2; numbers as in a recorded stream: 22 + 8 + 30 + 8 + 4096 bytes after 1817.
NESTED: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    *iterable(START, PC_RAM, EOS),
    *iterable(END, EOS),
    device(
        NESTED_CPU,
        LAYOUT,
        SubsectionAt(
            "cpu/nested_state",
            1,
            17 + 1817,
            17 + 1817 + 22,
            17 + 1817 + 4164,
            (SubsectionAt("cpu/kvm_nested_state/svm", 1, 17 + 1847, 17 + 1877, 17 + 1817 + 4164),),
        ),
    ),
    *held(device(STATE, VMDESC)),
    *described(NESTED_CPU, STATE),
)

IGNORE_SHARED: tuple[Line, ...] = (
    HEADER,
    (
        build.configuration(build.MACHINE, build.capabilities("x-ignore-shared"), build.uuid(bytes(range(16)))),
        told(MachineConfiguration, build.MACHINE, ("x-ignore-shared",), UUID(bytes=bytes(range(16)))),
    ),
    *iterable(
        START,
        (
            build.mem_size(
                0x3000, build.row("pc.ram", 0x2000, gpa=0), build.row("pc.rom", 0x1000, gpa=0xFFFC0000)
            ),
            told(
                RamBlocks,
                0x3000,
                (RamBlock("pc.ram", 0x2000, gpa=0), RamBlock("pc.rom", 0x1000, gpa=0xFFFC0000)),
            ),
        ),
        EOS,
    ),
    *iterable(END, EOS),
    *described(),
)  # fmt: skip

MULTIFD: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    *iterable(START, PC_RAM, (build.FLUSH + build.EOS, told(RamRecords, multifd_flush=1))),
    *iterable(PART, (build.FLUSH + build.FLUSH + build.EOS, told(RamRecords, multifd_flush=2))),
    *iterable(END, (build.FLUSH + build.EOS, told(RamRecords, multifd_flush=1))),
    *described(),
)

#: No END: the device sections follow the last PART.
BACKGROUND_SNAPSHOT: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    *iterable(START, PC_RAM, EOS),
    *iterable(PART, (build.zero(0, "pc.ram"), told(RamRecords, "pc.ram", zero=1)), EOS),
    device(TIMER, LAYOUT),
    *described(TIMER),
)

DELTAS: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    *iterable(START, PC_RAM, EOS),
    *iterable(
        PART,
        (
            build.xbzrle(0, b"\x01\x02xy", "pc.ram") + build.xbzrle(0x1000, b"") + build.zero(0x2000),
            told(RamRecords, "pc.ram", xbzrle=2, zero=1),
        ),
        (
            build.compressed(0, b"zlib data", "pc.bios") + build.compressed(0, b""),
            told(RamRecords, "pc.bios", compressed=2),
        ),
        EOS,
    ),
    *iterable(END, EOS),
    *described(),
)

VFIO = "0000:00:02.0/vfio"
VFIO_CONFIG = build.Device(7, VFIO, build.be((8, 0xFFFFFFFFEF100002), (3, 5), (8, 0xFFFFFFFFEF100001)))


def bitmap(kind: SectionType, *chunks: bytes) -> tuple[Line, ...]:
    """A section of dirty bitmaps, with the chunk that ends it."""
    raw = b"".join(chunks) + b"\x01"
    return iterable(kind, (raw, told(IterableData, "dirty-bitmap")), section_id=1, idstr="dirty-bitmap", version=1)


def vfio(kind: SectionType, *tags: bytes) -> tuple[Line, ...]:
    """A section of a VFIO device."""
    return iterable(kind, (b"".join(tags), told(IterableData, VFIO)), section_id=7, idstr=VFIO, version=1)


def tag(low: int, rest: bytes = b"") -> bytes:
    return BE64.pack(0xFFFFFFFFEF100000 + low) + rest


NODE_AND_NAME = build.label("disk0") + build.label("map")

OTHER_ITERABLES: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    command(Command.POSTCOPY_ADVISE),
    *bitmap(START, b"\x1c" + NODE_AND_NAME + build.be((4, 65536), (1, 1))),
    *iterable(START, PC_RAM, EOS),
    *vfio(START, tag(3), tag(1)),
    *bitmap(PART, b"\x4c" + NODE_AND_NAME + build.be((8, 0), (4, 64), (8, 8)) + b"\xff\0" * 4),
    *vfio(PART, tag(4, BE64.pack(6) + b"device"), tag(5)),
    *bitmap(END, b"\x42" + build.be((8, 64), (4, 64)), b"\x20"),
    *iterable(END, EOS),
    *vfio(END, tag(4, BE64.pack(0)), tag(1)),
    *held(device(VFIO_CONFIG, VMDESC)),
    *described(VFIO_CONFIG),
)

EARLY = build.opaque(11, "0000:00:03.0/virtio-mem-early", b"\0\0\0\0\x10\0\0\0")

EARLY_DEVICE: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    command(Command.OPEN_RETURN_PATH),
    device(EARLY, FOOTER),
    *iterable(START, PC_RAM, EOS),
    *iterable(END, EOS),
    device(TIMER, LAYOUT),
    *held(device(STATE, VMDESC)),
    *described(EARLY, TIMER, STATE),
)

DISCARD = build.discard("pc.ram", (0x1000, 0x2000))

#: Huge pages: only blocks whose pages are larger than the source host's tell their size.
POSTCOPY: tuple[Line, ...] = (
    HEADER,
    MACHINE,
    command(Command.OPEN_RETURN_PATH),
    command(Command.POSTCOPY_ADVISE, build.be((8, 0x201000), (8, 0x1000))),
    *iterable(
        START,
        (
            build.mem_size(
                0x602000,
                build.row("pc.ram", 0x400000, page_size=0x200000),
                build.row("pc.bios", 0x2000),
                build.row("hot", 0x200000, page_size=0x200000),
            ),
            told(
                RamBlocks,
                0x602000,
                (
                    RamBlock("pc.ram", 0x400000, 0x200000),
                    RamBlock("pc.bios", 0x2000),
                    RamBlock("hot", 0x200000, 0x200000),
                ),
            ),
        ),
        EOS,
    ),
    *iterable(PART, (build.zero(0, "pc.ram"), told(RamRecords, "pc.ram", zero=1)), EOS),
    SWITCHOVER,
    (DISCARD, told(CommandReceived, Command.POSTCOPY_RAM_DISCARD, DISCARD[5:])),
    command(Command.PING, b"\0\0\0\2"),
    (
        build.package(*(part := (
            build.command(Command.POSTCOPY_LISTEN), TIMER.section(), BUS.section(), STATE.section(),
            build.command(Command.PING, b"\0\0\0\3"), build.command(Command.POSTCOPY_RUN),
        )))[:9],
        told(CommandReceived, Command.PACKAGED, build.be((4, sum(map(len, part))))),
    ),
    command(Command.POSTCOPY_LISTEN),
    device(TIMER, LAYOUT),
    device(BUS, FOOTER),
    device(STATE, FOOTER),
    command(Command.PING, b"\0\0\0\3"),
    command(Command.POSTCOPY_RUN),
    (b"", told(PackageEnd)),
    command(Command.PING, b"\0\0\0\4"),
    *iterable(PART, (build.zero(0x1000), told(RamRecords, "pc.ram", zero=1)), EOS),
    *iterable(END, EOS),
    (build.EOF, told(SectionsEnd)),
)  # fmt: skip

TRANSCRIPTS: dict[str, tuple[Line, ...]] = {
    "precopy": PRECOPY,
    "pages": PAGES,
    "known devices only": KNOWN_ONLY,
    "vCPU behind an unknown section": LATE_VCPU,
    "nested": NESTED,
    "x-ignore-shared": IGNORE_SHARED,
    "multifd": MULTIFD,
    "background snapshot": BACKGROUND_SNAPSHOT,
    "deltas": DELTAS,
    "other iterables": OTHER_ITERABLES,
    "early device": EARLY_DEVICE,
    "postcopy": POSTCOPY,
}
