# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixed binary layouts: declared once, then parsed, built, read field by field, and documented.

A layout is a list of rows, each with the offset that its source gives. The rows become one
:class:`construct.Struct`, which parses and builds whole values; the same rows yield offsets and
:class:`struct.Struct` codecs for reading or writing single fields in place, which is what code
that runs at switchover uses (construct itself costs microseconds per field). :class:`Codec` does the same for
many fields at once.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import construct

from qmpfilter.errors import BugError

__all__ = ["Codec", "Field", "Fields", "Layout"]


@dataclass(frozen=True, slots=True)
class Field:
    """One row of a layout.

    :param offset: bytes from the start of the layout, as the source gives it
    :param name: the field's own name in that source
    :param type: a construct of fixed size
    :param doc: meaning, units, and what is worth knowing
    """

    offset: int
    name: str
    type: construct.Construct[Any, Any]
    doc: str = ""

    @property
    def size(self) -> int:
        """Bytes that the field occupies."""
        return int(self.type.sizeof())


class Layout:
    """A fixed layout of fields.

    :param name: what the source calls the whole
    :param source: where it is defined: file and version, or document and section
    :param fields: rows in ascending order
    :param size: bytes of the whole; the end of the last field when omitted
    :param gaps: True where undeclared bytes between fields are legal (they are kept as padding and
        built as zeros); False demands that every byte is declared
    :raises BugError: rows overlap, leave a forbidden gap, or exceed the size
    """

    def __init__(
        self, name: str, source: str, fields: Sequence[Field], *, size: int | None = None, gaps: bool = False
    ) -> None:
        self.name = name
        self.source = source
        self.fields: Mapping[str, Field] = {field.name: field for field in fields}
        end = 0
        members: list[construct.Construct[Any, Any]] = []
        for field in fields:
            if field.offset < end or (field.offset > end and not gaps):
                raise BugError(f"{name}.{field.name}: declared at {field.offset:#x}, the row before ends at {end:#x}")
            if field.offset > end:
                members.append(construct.Padding(field.offset - end))
            members.append(field.name / field.type)
            end = field.offset + field.size
        self.size = end if size is None else size
        if self.size < end:
            raise BugError(f"{name}: fields end at {end:#x}, beyond the size {self.size:#x}")
        if self.size > end:
            members.append(construct.Padding(self.size - end))
        self.struct = construct.Struct(*members)
        # construct works a size out anew each time it is asked.
        self._spans = {field.name: slice(field.offset, field.offset + field.size) for field in fields}
        self._codecs = {
            field.name: (field.offset, codec) for field in fields if (codec := _codec(field.type)) is not None
        }

    def __repr__(self) -> str:
        return f"<Layout {self.name} {self.size:#x} bytes, {len(self.fields)} fields>"

    def parse(self, data: bytes | bytearray | memoryview) -> dict[str, Any]:
        """Decode every field of `data`, which holds at least `size` bytes; numbers come as int, arrays as
        list, nested records as dict, opaque stretches as bytes.

        :raises BugError: fewer bytes than `size`
        """
        if len(data) < self.size:
            raise BugError(f"{self.name}: {self.size:#x} bytes needed, {len(data):#x} given")
        parsed = self.struct.parse(bytes(data[: self.size]))
        return {name: _plain(parsed[name]) for name in self.fields}

    def build(self, values: Mapping[str, Any]) -> bytes:
        """Encode `values`, the inverse of :meth:`parse`; undeclared bytes are zero.

        :raises KeyError: a field is missing
        :raises construct.ConstructError: a value does not fit its field
        """
        return bytes(self.struct.build(dict(values)))

    def offset(self, name: str) -> int:
        """Offset of a field from the start of the layout."""
        return self.fields[name].offset

    def span(self, name: str) -> slice:
        """The slice of bytes that a field occupies."""
        return self._spans[name]

    def is_signed(self, name: str) -> bool:
        """True for a field that is one signed integer."""
        type_ = self.fields[name].type
        return isinstance(type_, construct.FormatField) and str(type_.fmtstr)[-1].islower()

    def get(self, data: bytes | bytearray | memoryview, name: str, base: int = 0) -> int:
        """Read one integer field of the layout that starts at `data[base]`."""
        offset, codec = self._codecs[name]
        value: int = codec.unpack_from(data, base + offset)[0]
        return value

    def put(self, data: bytearray | memoryview, name: str, value: int, base: int = 0) -> None:
        """Write one integer field of the layout that starts at `data[base]`.

        :raises struct.error: the value does not fit the field
        """
        offset, codec = self._codecs[name]
        codec.pack_into(data, base + offset, value)


class Codec:
    """Many fields of one layout at once, in the layout's order.

    One :class:`struct.Struct` made of the layout's rows: for what runs while a guest stands still, where
    reading field by field, or with construct, would cost tens of microseconds per vCPU.

    :param layout: where they stand; its byte order
    :param names: which; every field that is one integer when omitted
    :raises BugError: a field is neither an integer nor opaque bytes
    """

    def __init__(self, layout: Layout, names: Iterable[str] | None = None) -> None:
        chosen = None if names is None else set(names)
        self.layout: Final = layout
        self.names: Final = tuple(
            name
            for name, field in layout.fields.items()
            if (_is_integer(field) if chosen is None else name in chosen)
        )
        if chosen is not None and len(self.names) != len(chosen):
            raise BugError(f"{layout.name} has no fields {sorted(chosen - set(self.names))}")
        text, end, orders = "", 0, set()
        for name in self.names:
            field = layout.fields[name]
            order, code = _format(field)
            orders.add(order)
            text += f"{field.offset - end}x{code}"
            end = field.offset + field.size
        if len(orders - {""}) != 1:
            raise BugError(f"{layout.name}: integers of one byte order expected, found {orders}")
        self._struct = struct.Struct(f"{max(orders)}{text}{layout.size - end}x")
        self._fields: Any = namedtuple("Fields", self.names)  # type: ignore[misc]  # the names are those of a table

    def unpack(self, data: bytes | bytearray | memoryview, base: int = 0) -> tuple[Any, ...]:
        """The fields of the layout that starts at `data[base]`: integers as int, opaque stretches as bytes.

        :raises struct.error: fewer bytes than the layout's size
        """
        return self._struct.unpack_from(data, base)

    def read(self, data: bytes | bytearray | memoryview, base: int = 0) -> Fields:
        """The same as :meth:`unpack`, by name too, of a codec whose fields are all integers.

        :raises struct.error: fewer bytes than the layout's size
        """
        fields: Fields = self._fields._make(self._struct.unpack_from(data, base))
        return fields

    def pack(self, *values: Any) -> bytes:
        """The whole layout from its fields' values in the order of `names`; all other bytes are zero.

        :raises struct.error: a value does not fit its field
        """
        return self._struct.pack(*values)


class Fields(tuple[int, ...]):
    """The fields of a codec: a tuple with names, made by :meth:`Codec.read`."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> int: ...


def _is_integer(field: Field) -> bool:
    return isinstance(field.type, construct.FormatField)


def _format(field: Field) -> tuple[str, str]:
    """Byte order and format character of a field; opaque bytes have no order."""
    if isinstance(field.type, construct.FormatField):
        return str(field.type.fmtstr)[0], str(field.type.fmtstr)[1:]
    if isinstance(field.type, construct.Bytes):
        return "", f"{field.size}s"
    raise BugError(f"{field.name}: neither an integer nor opaque bytes")


def _codec(type_: construct.Construct[Any, Any]) -> struct.Struct | None:
    return struct.Struct(type_.fmtstr) if isinstance(type_, construct.FormatField) else None


def _plain(value: Any) -> Any:
    if isinstance(value, construct.Container):
        return {key: _plain(item) for key, item in value.items() if not str(key).startswith("_")}
    if isinstance(value, construct.ListContainer):
        return [_plain(item) for item in value]
    return value
