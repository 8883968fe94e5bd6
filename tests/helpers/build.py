# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds migration streams, part by part, from the description of the format and not from the parser.

Parts are plain bytes, put together with ``+``. Device sections are built from :class:`Device`, which
knows both its bytes and its entry in vmdesc.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qmpfilter.wire.framing import BE16, BE32, BE64, COMMAND_HEADER, MAGIC, Command, SectionType

__all__ = [
    "CPU_FIELDS",
    "EOF",
    "EOS",
    "FLUSH",
    "MACHINE",
    "PAGE",
    "RAM_ID",
    "UNTIL_TAIL",
    "Device",
    "Field",
    "Vmsd",
    "array",
    "be",
    "capabilities",
    "command",
    "compressed",
    "configuration",
    "cpu",
    "cpu_common",
    "description",
    "discard",
    "end",
    "field",
    "footer",
    "full",
    "head",
    "header",
    "label",
    "mem_size",
    "nested_svm",
    "opaque",
    "package",
    "page",
    "part",
    "resumed",
    "row",
    "start",
    "struct_field",
    "subsection",
    "tail",
    "timer",
    "uuid",
    "vmdesc",
    "word",
    "xbzrle",
    "zero",
]

MACHINE = "pc-q35-10.0"
RAM_ID = 2
PAGE = 4096

EOF = bytes([SectionType.EOF])


def be(*widths_and_values: tuple[int, int]) -> bytes:
    """Big-endian numbers from (bytes, value) pairs."""
    return b"".join((value % (1 << 8 * width)).to_bytes(width, "big") for width, value in widths_and_values)


def label(name: str | bytes) -> bytes:
    """A name after its u8 length."""
    raw = name.encode() if isinstance(name, str) else name
    return bytes([len(raw)]) + raw


# --- framing


def header(version: int = 3) -> bytes:
    """Magic and version."""
    return MAGIC + BE32.pack(version)


def configuration(machine: str = MACHINE, *subsections: bytes) -> bytes:
    """CONFIGURATION with what follows its machine name."""
    name = machine.encode()
    return bytes([SectionType.CONFIGURATION]) + BE32.pack(len(name)) + name + b"".join(subsections)


def subsection(name: str, payload: bytes = b"", *children: bytes, version: int = 1) -> bytes:
    """A subsection on the wire, with its children."""
    return bytes([SectionType.SUBSECTION]) + label(name) + BE32.pack(version) + payload + b"".join(children)


def capabilities(*names: str) -> bytes:
    """The subsection of CONFIGURATION that lists capabilities."""
    return subsection("configuration/capabilities", BE32.pack(len(names)) + b"".join(map(label, names)))


def uuid(raw: bytes) -> bytes:
    """The subsection of CONFIGURATION that carries the machine's UUID."""
    return subsection("configuration/uuid", raw)


def command(code: int, payload: bytes = b"") -> bytes:
    """A COMMAND and its payload."""
    return bytes([SectionType.COMMAND]) + COMMAND_HEADER.pack(code, len(payload)) + payload


def discard(block: str, *ranges: tuple[int, int]) -> bytes:
    """COMMAND POSTCOPY_RAM_DISCARD of (start, length) ranges."""
    rows = b"".join(struct.pack(">QQ", *pair) for pair in ranges)
    return command(Command.POSTCOPY_RAM_DISCARD, b"\0" + label(block) + b"\0" + rows)


def package(*contents: bytes) -> bytes:
    """COMMAND PACKAGED and its contents."""
    size = sum(map(len, contents))
    return command(Command.PACKAGED, BE32.pack(size)) + b"".join(contents)


def footer(section_id: int) -> bytes:
    """The footer of a section."""
    return bytes([SectionType.FOOTER]) + BE32.pack(section_id)


def start(body: bytes, section_id: int = RAM_ID, idstr: str = "ram", instance_id: int = 0, version: int = 4) -> bytes:
    """A START section, by default of RAM."""
    return head(SectionType.START, section_id, idstr, instance_id, version) + body + footer(section_id)


def part(body: bytes, section_id: int = RAM_ID) -> bytes:
    """A PART section, by default of RAM."""
    return resumed(SectionType.PART, section_id) + body + footer(section_id)


def end(body: bytes, section_id: int = RAM_ID) -> bytes:
    """An END section, by default of RAM."""
    return resumed(SectionType.END, section_id) + body + footer(section_id)


def full(section_id: int, idstr: str, body: bytes, instance_id: int = 0, version: int = 1) -> bytes:
    """A FULL section."""
    return head(SectionType.FULL, section_id, idstr, instance_id, version) + body + footer(section_id)


def head(kind: SectionType, section_id: int, idstr: str, instance_id: int, version: int) -> bytes:
    """The header of a START or FULL section."""
    return bytes([kind]) + BE32.pack(section_id) + label(idstr) + struct.pack(">II", instance_id, version)


def resumed(kind: SectionType, section_id: int) -> bytes:
    """The header of a PART or END section."""
    return bytes([kind]) + BE32.pack(section_id)


# --- RAM


def word(offset: int, flags: int) -> bytes:
    """The be64 that begins a RAM record."""
    return BE64.pack(offset | flags)


EOS = word(0, 0x10)
FLUSH = word(0, 0x200)


def row(name: str, length: int, page_size: int | None = None, gpa: int | None = None) -> bytes:
    """One row of the block list."""
    optional = b"".join(BE64.pack(value) for value in (page_size, gpa) if value is not None)
    return label(name) + BE64.pack(length) + optional


def mem_size(total: int, *rows: bytes) -> bytes:
    """The block list."""
    return word(total, 0x4) + b"".join(rows)


def _record(flags: int, offset: int, block: str | None, rest: bytes) -> bytes:
    """A record of a named block, or of the same block as the record before."""
    return word(offset, flags | (0x20 if block is None else 0)) + (b"" if block is None else label(block)) + rest


def page(offset: int, block: str | None = None, fill: bytes = b"\xa5") -> bytes:
    """An ordinary page, filled with a pattern."""
    return _record(0x8, offset, block, (fill * PAGE)[:PAGE])


def zero(offset: int, block: str | None = None, fill: int = 0) -> bytes:
    """A zero page."""
    return _record(0x2, offset, block, bytes([fill]))


def xbzrle(offset: int, data: bytes, block: str | None = None, encoding: int = 1) -> bytes:
    """A page as a difference."""
    return _record(0x40, offset, block, bytes([encoding]) + BE16.pack(len(data)) + data)


def compressed(offset: int, data: bytes, block: str | None = None) -> bytes:
    """A compressed page."""
    return _record(0x100, offset, block, BE32.pack(len(data)) + data)


# --- devices and vmdesc


@dataclass(frozen=True)
class Field:
    """An entry of `fields`: its bytes, and what vmdesc says of them.

    :param data: bytes on the wire, or the vmsd that they are
    :param size: size as vmdesc tells it, where that differs from what is written
    """

    name: str
    data: bytes | Vmsd
    type: str = "buffer"
    array_len: int | None = None
    index: int | None = None
    size: int | None = None

    def wire(self) -> bytes:
        """The field's bytes, a struct's subsections included."""
        return self.data.wire() if isinstance(self.data, Vmsd) else self.data

    def entry(self) -> dict[str, Any]:
        """The entry, with its keys in QEMU's order."""
        found: dict[str, Any] = {"name": self.name}
        if self.array_len is not None:
            found["array_len"] = self.array_len
        if self.index is not None:
            found["index"] = self.index
        found["type"] = self.type
        if isinstance(self.data, Vmsd):
            found["struct"] = self.data.entry()
        told = len(self.wire()) // (self.array_len or 1)
        found["size"] = told if self.size is None else self.size
        return found


@dataclass(frozen=True)
class Vmsd:
    """A description of fields and subsections, together with their contents."""

    name: str
    fields: tuple[Field, ...] = ()
    subsections: tuple[Vmsd, ...] = ()
    version: int = 1

    def wire(self) -> bytes:
        """Fields and subsections."""
        inner = (subsection(sub.name, sub.wire(), version=sub.version) for sub in self.subsections)
        return b"".join(one.wire() for one in self.fields) + b"".join(inner)

    def entry(self) -> dict[str, Any]:
        """The object of vmdesc."""
        found = {
            "vmsd_name": self.name,
            "version": self.version,
            "fields": [one.entry() for one in self.fields],
        }
        return found | ({"subsections": [sub.entry() for sub in self.subsections]} if self.subsections else {})


@dataclass(frozen=True)
class Device:
    """A device with its section and its entry in vmdesc; `vmsd` is plain bytes for one of the old style."""

    section_id: int
    idstr: str
    vmsd: Vmsd | bytes
    instance_id: int = 0
    version: int = 1

    @property
    def body(self) -> bytes:
        """What stands between header and footer."""
        return self.vmsd.wire() if isinstance(self.vmsd, Vmsd) else self.vmsd

    def section(self) -> bytes:
        """The FULL section."""
        return full(self.section_id, self.idstr, self.body, self.instance_id, self.version)

    def entry(self) -> dict[str, Any]:
        """The entry in `devices`."""
        found: dict[str, Any] = {"name": self.idstr, "instance_id": self.instance_id}
        if isinstance(self.vmsd, Vmsd):
            return found | self.vmsd.entry()
        size = len(self.vmsd)
        return found | {"size": size, "fields": [{"name": "data", "size": size, "type": "buffer"}]}


def field(name: str, data: bytes, type_: str = "buffer", size: int | None = None) -> Field:
    """A plain field."""
    return Field(name, data, type_, size=size)


def array(name: str, data: bytes, count: int, type_: str = "uint8") -> Field:
    """An array that vmdesc tells in one entry."""
    return Field(name, data, type_, array_len=count)


def struct_field(name: str, vmsd: Vmsd, index: int | None = None) -> Field:
    """A struct, or one element of an array of them."""
    return Field(name, vmsd, "struct", index=index)


def vmdesc(devices: Iterable[Device], *, old: bool = False) -> bytes:
    """The text, with or without the `configuration` that QEMU writes since 8.2."""
    entries = [device.entry() for device in devices]
    names = Vmsd("configuration", (field("len", bytes(4), "uint32"), field("name", MACHINE.encode())))
    first: dict[str, Any] = {} if old else {"configuration": names.entry()}
    return json.dumps(first | {"page_size": PAGE, "devices": entries}).encode()


def description(text: bytes) -> bytes:
    """VMDESCRIPTION with its length."""
    return bytes([SectionType.VMDESCRIPTION]) + BE32.pack(len(text)) + text


def tail(*devices: Device, described: Iterable[Device] | None = None) -> bytes:
    """Device sections, EOF and a vmdesc, by default of the same devices."""
    sections = b"".join(device.section() for device in devices)
    return sections + EOF + description(vmdesc(devices if described is None else described))


# --- devices that the parser knows by heart, as QEMU writes them

CPU_FIELDS = 1817


def timer(section_id: int = 0) -> Device:
    """The `timer` section."""
    fields = (field("cpu_ticks_offset", bytes(8), "int64"), field("unused", bytes(8), "unused_buffer"))
    clock = field("cpu_clock_offset", be((8, 0x1234)), "int64")
    return Device(section_id, "timer", Vmsd("timer", (*fields, clock), version=2), version=2)


def cpu_common(section_id: int, instance_id: int = 0, *subsections: Vmsd) -> Device:
    """The `cpu_common` section, which stands before its `cpu`."""
    fields = (field("halted", bytes(4), "uint32"), field("interrupt_request", bytes(4), "uint32"))
    return Device(section_id, "cpu_common", Vmsd("cpu_common", fields, subsections), instance_id)


def cpu(section_id: int, instance_id: int = 0, *subsections: Vmsd, version: int = 12, short: int = 0) -> Device:
    """A `cpu` section of made-up registers, `short` of so many bytes."""
    block = bytes((7 * at + instance_id) % 251 for at in range(CPU_FIELDS - short))
    fields = (array("env.regs", block[:128], 16, "uint64"), field("rest", block[128:]))
    return Device(section_id, "cpu", Vmsd("cpu", fields, subsections, version), instance_id, version)


def nested_svm(vmcb_pa: int = 0x1234000, vmcb12: bytes = b"\x5a" * PAGE, flags: int = 0x101) -> Vmsd:
    """The subsection `cpu/nested_state` of a vCPU that runs an SVM guest."""
    svm = Vmsd(
        "cpu/kvm_nested_state/svm",
        (field("hdr.svm.vmcb_pa", BE64.pack(vmcb_pa), "uint64"), array("data.svm[0].vmcb12", vmcb12, len(vmcb12))),
    )
    fixed = (
        field("flags", BE16.pack(flags), "uint16"),
        field("format", BE16.pack(1), "uint16"),
        field("size", BE32.pack(0x1080), "uint32"),
    )
    state = Vmsd("cpu/kvm_nested_state", fixed, (svm,))
    return Vmsd("cpu/nested_state", (struct_field("env.nested_state", state),))


def opaque(section_id: int, idstr: str, data: bytes, instance_id: int = 0, version: int = 1) -> Device:
    """A device that the parser does not know."""
    return Device(section_id, idstr, Vmsd(idstr, (field("state", data),), version=version), instance_id, version)


#: A short stream up to where the first device section of the tail begins.
UNTIL_TAIL = (
    header() + configuration() + start(mem_size(PAGE, row("pc.ram", PAGE)) + EOS) + end(zero(0, "pc.ram") + EOS)
)
