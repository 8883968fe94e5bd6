# SPDX-License-Identifier: GPL-2.0-or-later
"""What the parser tells: one event for each part of the stream, in stream order.

Every event carries `offset`, the position of its first byte in the stream, and `raw`, exactly the
bytes it stands for. **The `raw` of all events, one after the other, are the input**: whoever
forwards `raw` forwards the stream, and whoever replaces one `raw` edits it.

`raw` of the bulk events (:class:`RamRecords`, :class:`IterableData`) is a view into the buffer that
was given to the parser, valid until the next call of `receive_data`; how the bulk is divided into
events depends on how the input was divided, their sum does not. Every other `raw` is bytes.

Do not subclass these.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from uuid import UUID

from qmpfilter.value_class import value_class
from qmpfilter.wire.framing import Command, SectionType
from qmpfilter.wire.vmdesc import VmDescription
from qmpfilter.wire.vmsd import SubsectionAt

__all__ = [
    "CommandReceived",
    "DelimitedBy",
    "DeviceSection",
    "Event",
    "Header",
    "IterableData",
    "IterableEnd",
    "IterableStart",
    "MachineConfiguration",
    "PackageEnd",
    "RamBlock",
    "RamBlocks",
    "RamRecords",
    "SectionsEnd",
    "SectionsHeld",
    "VmDescriptionReceived",
]


@dataclass(frozen=True, slots=True)
class Header:
    """Magic and version of the stream: the first 8 bytes."""

    offset: int
    raw: bytes
    version: int


@dataclass(frozen=True, slots=True)
class MachineConfiguration:
    """CONFIGURATION: the machine type and what its subsections say."""

    offset: int
    raw: bytes
    machine: str
    capabilities: tuple[str, ...] = ()
    uuid: UUID | None = None
    page_bits: int | None = None


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """A COMMAND with its payload. After PACKAGED (payload be32 size) the events of its contents
    follow, then :class:`PackageEnd`; `raw` does not hold the contents."""

    offset: int
    raw: bytes
    command: Command
    payload: bytes


@dataclass(frozen=True, slots=True)
class PackageEnd:
    """All contents of a PACKAGED command were told; stands for no bytes."""

    offset: int
    raw: bytes = b""


@value_class
class IterableStart:
    """The header of a START, PART or END section."""

    offset: int
    raw: bytes
    type: SectionType
    section_id: int
    idstr: str
    instance_id: int
    version_id: int


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One row of the MEM_SIZE list: `length` in bytes, `page_size` and `gpa` where they were sent."""

    name: str
    length: int
    page_size: int | None = None
    gpa: int | None = None


@dataclass(frozen=True, slots=True)
class RamBlocks:
    """The MEM_SIZE record: every RAM block of the guest; `total` in bytes."""

    offset: int
    raw: bytes
    total: int
    blocks: tuple[RamBlock, ...]


@value_class
class RamRecords:
    """A stretch of RAM records of one block, with their number by kind.

    A record is counted in the event that holds its last header byte; its page may go on in the
    next event. `block` is empty where the stretch holds no page record.
    """

    offset: int
    raw: bytes | memoryview
    block: str = ""
    normal: int = 0
    zero: int = 0
    xbzrle: int = 0
    compressed: int = 0
    multifd_flush: int = 0


@dataclass(frozen=True, slots=True)
class IterableData:
    """A stretch of an iterable's body other than RAM: dirty bitmaps, VFIO device data, block migration."""

    offset: int
    raw: bytes | memoryview
    idstr: str


@value_class
class IterableEnd:
    """The footer of a START, PART or END section."""

    offset: int
    raw: bytes
    section_id: int
    idstr: str


class DelimitedBy(enum.Enum):
    """How the end of a device section was found, best first."""

    LAYOUT = "layout"
    VMDESC = "vmdesc"
    FOOTER = "footer"


@value_class
class DeviceSection:
    """A whole FULL section from its type byte to the end of its footer.

    `body` is where its fields begin in `raw` and `body_end` where the footer begins.
    `subsections` are those found in it when its layout is known, else empty.
    """

    offset: int
    raw: bytes
    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    body: int
    body_end: int
    delimited_by: DelimitedBy
    subsections: tuple[SubsectionAt, ...] = field(default=())

    def subsection(self, name: str) -> SubsectionAt | None:
        """The first direct subsection of that name."""
        return next((sub for sub in self.subsections if sub.name == name), None)


@value_class
class SectionsHeld:
    """Sections whose ends are not known yet begin with `ahead`, in which no vCPU's section and no EOF begins,
    whatever divides it; told once, before vmdesc is read, and stands for no bytes.

    Whoever edits vCPUs alone may pass `ahead` on at once, and then of the sections that follow no more than the rest.
    """

    offset: int
    ahead: bytes
    raw: bytes = b""


@value_class
class SectionsEnd:
    """The EOF byte after the last section: the commit point."""

    offset: int
    raw: bytes


@value_class
class VmDescriptionReceived:
    """The vmdesc, against which every device section was checked before this event was told."""

    offset: int
    raw: bytes
    vmdesc: VmDescription


Event = (
    Header
    | MachineConfiguration
    | CommandReceived
    | PackageEnd
    | IterableStart
    | RamBlocks
    | RamRecords
    | IterableData
    | IterableEnd
    | DeviceSection
    | SectionsHeld
    | SectionsEnd
    | VmDescriptionReceived
)
