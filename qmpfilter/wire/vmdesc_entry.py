# SPDX-License-Identifier: GPL-2.0-or-later
"""What the objects of vmdesc's JSON hold, as far as sizes go, and how that divides a section.

Sizes follow section 4 of docs/devel/migration: size(vmsd) = sum of field size x array_len, plus
6 + len(name) + size for each subsection; a field's own size includes its struct's subsections.

Keys may repeat inside one object (QEMU 10.2.2 migration/vmstate.c:476-566 calls the writer once per element of a
list field), and the last of each is what is left. The size of such a field stands behind them and tells them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Final

import msgspec

from qmpfilter.wire.vmsd import SubsectionAt, header_size

__all__ = ["DeviceEntry", "FieldEntry", "Shape", "SubsectionEntry", "VmsdEntry", "decode", "from_json"]

_MAX_SIZE: Final = 1 << 40
_MAX_VERSION: Final = 0xFFFF_FFFF
_MAX_DEPTH: Final = 32

_Size = Annotated[int, msgspec.Meta(ge=0, le=_MAX_SIZE)]
_Version = Annotated[int, msgspec.Meta(ge=0, le=_MAX_VERSION)]
# Its length takes one byte in the stream.
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[ -~]{1,255}\Z")]

Shape = tuple[int, tuple[SubsectionAt, ...]]
"""Where a section's own fields end, and its subsections."""


class FieldEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry of `fields`.

    :param size: bytes of one element
    :param array_len: how many elements the entry stands for
    """

    size: _Size
    array_len: _Size = 1


class VmsdEntry(msgspec.Struct, frozen=True, gc=False):
    """A struct that a subsection has as a field."""

    fields: tuple[FieldEntry, ...] = ()
    subsections: tuple[SubsectionEntry, ...] = ()


class _MemberEntry(FieldEntry, frozen=True, gc=False):
    """One entry of a subsection's `fields`: the subsections of its struct are children of that subsection."""

    struct: VmsdEntry | None = None


class SubsectionEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry of `subsections`."""

    name: _Name = msgspec.field(name="vmsd_name")
    version: _Version
    fields: tuple[_MemberEntry, ...] = ()
    subsections: tuple[SubsectionEntry, ...] = ()


class DeviceEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry of `devices`.

    :param told: the size of a section that old code without a vmsd wrote
    """

    name: str
    instance_id: int
    told: _Size | None = msgspec.field(name="size", default=None)
    fields: tuple[FieldEntry, ...] = ()
    subsections: tuple[SubsectionEntry, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the section between its header and its footer.

        :raises ValueError: subsections that are nested too deep
        """
        if self.told is not None:
            return self.told
        return _fields_size(self.fields) + _subsections_size(self.subsections)

    def shape(self, body: int) -> Shape:
        """How the section is divided.

        :param body: where the section's fields begin; where they end is in the same count
        :raises ValueError: subsections that are nested too deep
        """
        end = body + _fields_size(self.fields)
        return end, tuple(_placed(self.subsections, end, 0))


_DECODER: Final = msgspec.json.Decoder(DeviceEntry)


def decode(text: bytes | memoryview) -> DeviceEntry:
    """The entry of which the text consists.

    :raises ValueError: it is no JSON, or not such an object
    :raises RecursionError: it is nested too deep
    """
    return _DECODER.decode(text)


def from_json(value: object) -> DeviceEntry:
    """The same from what JSON was decoded to.

    :raises ValueError: it is not such an object
    :raises RecursionError: it is nested too deep
    """
    return msgspec.convert(value, DeviceEntry)


def _fields_size(fields: Iterable[FieldEntry]) -> int:
    return sum([field.size * field.array_len for field in fields])


def _check(depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"subsections nested more than {_MAX_DEPTH} deep")


def _subsections_size(subsections: Iterable[SubsectionEntry], depth: int = 0) -> int:
    _check(depth)
    return sum(
        header_size(sub.name) + _fields_size(sub.fields) + _subsections_size(sub.subsections, depth + 1)
        for sub in subsections
    )


def _placed(subsections: Iterable[SubsectionEntry], at: int, depth: int) -> Iterator[SubsectionAt]:
    _check(depth)
    for sub in subsections:
        payload = at + header_size(sub.name)
        fields_end = payload
        children: list[SubsectionAt] = []
        for field in sub.fields:
            size = field.size * field.array_len
            # A struct's subsections follow its fields and are counted in the field's size
            # (vmstate.c:356-411), so they stand at its end.
            if field.struct is not None:
                start = fields_end + _fields_size(field.struct.fields)
                children.extend(_placed(field.struct.subsections, start, depth + 1))
            fields_end += size
        children.extend(_placed(sub.subsections, fields_end, depth + 1))
        end = fields_end + _subsections_size(sub.subsections)
        yield SubsectionAt(sub.name, sub.version, at, payload, end, tuple(children))
        at = end
