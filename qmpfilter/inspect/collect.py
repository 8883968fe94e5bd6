# SPDX-License-Identifier: GPL-2.0-or-later
"""Collects what a stream's events tell into one report; memory does not grow with the guest's RAM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from qmpfilter.errors import StreamError
from qmpfilter.inspect.vcpu import Vcpu, decode_vcpu
from qmpfilter.wire import cpu
from qmpfilter.wire.events import (
    CommandReceived,
    DelimitedBy,
    DeviceSection,
    Event,
    IterableData,
    IterableEnd,
    IterableStart,
    MachineConfiguration,
    RamBlock,
    RamBlocks,
    RamRecords,
    SectionsEnd,
    VmDescriptionReceived,
)
from qmpfilter.wire.framing import BE32, Command, SectionType

__all__ = ["BlockRecords", "Report", "SectionRow"]

_MAX_ROWS: Final = 32768


@dataclass(slots=True)
class SectionRow:
    """One row of the section table.

    PARTs of one iterable with nothing but PARTs between them are one row with `count` of them, and so are
    equal commands in sequence; `offset` is the first's, `size` their sum in bytes, headers and footers included.
    """

    offset: int
    size: int
    type: str
    name: str
    section_id: int | None = None
    instance_id: int | None = None
    version_id: int | None = None
    delimited_by: DelimitedBy | None = None
    count: int = 1


@dataclass(slots=True)
class BlockRecords:
    """RAM records of one block, or of all: how many of each kind."""

    normal: int = 0
    zero: int = 0
    xbzrle: int = 0
    compressed: int = 0

    def add(self, event: RamRecords) -> None:
        """Count an event's records."""
        self.normal += event.normal
        self.zero += event.zero
        self.xbzrle += event.xbzrle
        self.compressed += event.compressed

    @property
    def pages(self) -> int:
        """Pages that the records stand for."""
        return self.normal + self.zero + self.xbzrle + self.compressed


@dataclass(slots=True)
class Report:
    """Everything known of one stream. Give it every event in order, then `error` if there was one.

    `undecoded_vcpus` are `cpu` sections of another version than the one whose layout is known.
    """

    configuration: MachineConfiguration | None = None
    commands: set[Command] = field(default_factory=set)
    postcopy_advised: bool = False
    ram_total: int = 0
    blocks: tuple[RamBlock, ...] = ()
    records: dict[str, BlockRecords] = field(default_factory=dict)
    ram_bytes: int = 0
    ram_parts: int = 0
    multifd_flushes: int = 0
    sections: list[SectionRow] = field(default_factory=list)
    rows_left_out: int = 0
    vcpus: list[Vcpu] = field(default_factory=list)
    undecoded_vcpus: int = 0
    eof_offset: int | None = None
    vmdesc: VmDescriptionReceived | None = None
    error: StreamError | None = None
    _parts: dict[int, SectionRow] = field(default_factory=dict)
    _row: SectionRow | None = None

    def add(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case RamRecords() | IterableData():
                self._bulk(event)
            case IterableStart():
                self._iterable_start(event)
            case IterableEnd():
                self._grow(len(event.raw))
            case DeviceSection():
                self._device(event)
            case RamBlocks():
                self.ram_total, self.blocks = event.total, event.blocks
                self.records = {block.name: BlockRecords() for block in event.blocks}
                self._grow(len(event.raw))
                self.ram_bytes += len(event.raw)
            case CommandReceived():
                self._command(event)
            case MachineConfiguration():
                self.configuration = event
                self._append(SectionRow(event.offset, len(event.raw), "CONFIGURATION", event.machine))
            case SectionsEnd():
                self.eof_offset = event.offset
                self._append(SectionRow(event.offset, len(event.raw), "EOF", ""))
            case VmDescriptionReceived():
                self.vmdesc = event
                text = f"{len(event.vmdesc.devices)} devices"
                self._append(SectionRow(event.offset, len(event.raw), "VMDESCRIPTION", text))
            case _:
                pass

    @property
    def postcopy(self) -> bool:
        """The migration switched to postcopy: there is no vmdesc."""
        return Command.PACKAGED in self.commands

    @property
    def complete(self) -> bool:
        """The stream was read to its end."""
        return self.error is None and self.eof_offset is not None and (self.postcopy or self.vmdesc is not None)

    @property
    def totals(self) -> BlockRecords:
        """Records of all blocks together."""
        return BlockRecords(
            sum(block.normal for block in self.records.values()),
            sum(block.zero for block in self.records.values()),
            sum(block.xbzrle for block in self.records.values()),
            sum(block.compressed for block in self.records.values()),
        )

    def capabilities(self) -> Iterator[str]:
        """Migration capabilities that the bytes show. A stream names only few; others leave no trace."""
        yield from self.configuration.capabilities if self.configuration else ()
        if self.configuration and self.configuration.uuid:
            yield "validate-uuid"
        # The source opens it for postcopy too, with or without the capability (QEMU 10.2.2 migration.c:3785).
        if Command.OPEN_RETURN_PATH in self.commands and not self.postcopy_advised:
            yield "return-path"
        if self.postcopy_advised:
            yield "postcopy-ram"
        if self.multifd_flushes:
            yield "multifd"
        if self.totals.xbzrle:
            yield "xbzrle"
        if self.totals.compressed:
            yield "compress"
        if any(row.name == "dirty-bitmap" for row in self.sections):
            yield "dirty-bitmaps"

    def _bulk(self, event: RamRecords | IterableData) -> None:
        self._grow(len(event.raw))
        if isinstance(event, RamRecords):
            self.ram_bytes += len(event.raw)
            self.multifd_flushes += event.multifd_flush
            if event.block:
                self.records[event.block].add(event)

    def _grow(self, size: int) -> None:
        """Bytes of the section whose row is the current one."""
        if self._row is not None:
            self._row.size += size

    def _append(self, row: SectionRow) -> None:
        """A new row; only a stream that was made to do so has more of them than are kept."""
        self._row = row
        if row.type != SectionType.PART.name:
            self._parts.clear()
        if len(self.sections) < _MAX_ROWS:
            self.sections.append(row)
        else:
            self.rows_left_out += 1

    def _command(self, event: CommandReceived) -> None:
        self.commands.add(event.command)
        self.postcopy_advised |= event.command is Command.POSTCOPY_ADVISE and bool(event.payload)
        text = _command_text(event)
        if self._row is not None and (self._row.type, self._row.name) == ("COMMAND", text):
            self._row.count += 1
            self._row.size += len(event.raw)
        else:
            self._append(SectionRow(event.offset, len(event.raw), "COMMAND", text))

    def _iterable_start(self, event: IterableStart) -> None:
        self.ram_parts += event.idstr == "ram"
        kind = event.type.name
        row = self._parts.get(event.section_id) if event.type is SectionType.PART else None
        if row is not None:
            row.count += 1
            row.size += len(event.raw)
            self._row = row
            return
        row = SectionRow(
            event.offset,
            len(event.raw),
            kind,
            event.idstr,
            event.section_id,
            event.instance_id,
            event.version_id,
        )
        self._append(row)
        if event.type is SectionType.PART:
            self._parts[event.section_id] = row

    def _device(self, event: DeviceSection) -> None:
        self._append(
            SectionRow(
                event.offset,
                len(event.raw),
                SectionType.FULL.name,
                event.idstr,
                event.section_id,
                event.instance_id,
                event.version_id,
                event.delimited_by,
            )
        )
        if event.idstr != cpu.IDSTR:
            return
        if event.version_id == cpu.VERSION:
            self.vcpus.append(decode_vcpu(event))
        else:
            self.undecoded_vcpus += 1


def _command_text(event: CommandReceived) -> str:
    """The command's name, with its number where it has one that means something to a reader."""
    if event.command in (Command.PING, Command.PACKAGED):
        return f"{event.command.name} {BE32.unpack(event.payload)[0]:#x}"
    return event.command.name
