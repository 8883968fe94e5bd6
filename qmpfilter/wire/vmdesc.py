# SPDX-License-Identifier: GPL-2.0-or-later
"""vmdesc: the JSON text after EOF that names every field of every device section, with its size.

It is the only place where the sizes of device sections stand. The text is kept as it came and is
edited by splicing at recorded offsets, never by way of what it was decoded to: keys may repeat inside
one object (QEMU 10.2.2 migration/vmstate.c:476-566 calls the writer once per element of a list field),
and the last of each is what is left. The size of such a field stands behind them and tells them all.

Sizes follow section 4 of docs/devel/migration: size(vmsd) = sum of field size x array_len, plus
6 + len(name) + size for each subsection; a field's own size includes its struct's subsections.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from qmpfilter.errors import BugError, LayoutError
from qmpfilter.wire.vmsd import SubsectionAt, header_size

__all__ = ["Device", "Splice", "Token", "VmDescription", "shape_of", "splice", "tokenize"]

_T = TypeVar("_T")

# An object of the text.
Entry = Mapping[str, Any]

# Where a section's own fields end, and its subsections.
Shape = tuple[int, tuple[SubsectionAt, ...]]

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
# How QEMU begins the entry of a device, and what of that stands nowhere else.
_NUMBERED: Final = re.compile(r'\{"name": "([ !#-\[\]-~]+)", "instance_id": (0|[1-9][0-9]{0,9}), (?=")')
_BETWEEN: Final = '}, {"name": "'
_INSTANCE: Final = '", "instance_id": '
_MOST_ALIKE: Final = 8
_OBJECTS: Final = frozenset({dict})
_MAX_SIZE: Final = 1 << 40
_MAX_DEPTH: Final = 32
_MAX_NAME: Final = 255
# Characters of text for each object or list, and for each value: real ones have 48 and 18.
_MIN_CONTAINER: Final = 16
_MIN_VALUE: Final = 8
_FREE_MARKS: Final = 4096
_MARKS: Final = {"{[": _MIN_CONTAINER, ",": _MIN_VALUE}
# Characters of text that are decoded at first, a value of more in as many steps as it takes.
_WINDOW: Final = 1 << 15
_WIDER: Final = 4
# Characters among which the next device's entry is looked for.
_FARTHEST: Final = 1 << 18
_TOKEN: Final = re.compile(
    rb"""[ \t\r\n]*(?:
        (?P<string>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")
      | (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)
      | (?P<word>true|false|null)
      | (?P<mark>[][{}:,])
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Device:
    """One entry of `devices`: a FULL section, in the order of the stream.

    :param start: offset of its ``{`` in the text
    :param end: offset after its ``}``
    :param size: bytes of the section between its header and its footer, as the text says
    :param entry: what the text says of it; the first one's for all devices whose entries differ in their instance
        alone
    :param shapes: what :func:`shape_of` found so far, by `body`, shared in the same way
    """

    name: str
    instance_id: int
    start: int
    end: int
    size: int
    entry: Entry = field(repr=False)
    shapes: dict[int, Shape] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class VmDescription:
    """A parsed vmdesc; `text` is exactly what the stream holds."""

    text: bytes
    page_size: int
    devices: tuple[Device, ...]

    @classmethod
    def parse(cls, text: bytes, offset: int = 0) -> VmDescription:
        """Parse the text.

        :param offset: where it stands in the stream, for errors
        :raises LayoutError: no JSON of vmdesc's shape
        """
        return _Parser(text, offset).parse()


class _Alike(NamedTuple):
    """What follows the instance in the entry of a device that was decoded."""

    text: str
    device: Device


class _Parser:
    """Walks the top level by hand, for the offsets, and decodes each value below it with C code.

    The vCPUs of a machine have entries that differ in nothing but their instance: text that was decoded once is
    compared, and not decoded again.
    """

    def __init__(self, text: bytes, offset: int) -> None:
        self._text = text
        self._offset = offset
        try:
            # Offsets in characters are offsets in bytes only where every character is one byte.
            self._chars = text.decode("ascii")
        except UnicodeDecodeError as error:
            raise LayoutError(offset + error.start, "ASCII text of vmdesc", text[error.start : error.end]) from None
        self._marks = dict.fromkeys(_MARKS, 0)
        self._counted = 0
        self._decode = json.JSONDecoder().raw_decode
        self._last_end = 0
        self._alike: dict[str, list[_Alike]] = {}

    def parse(self) -> VmDescription:
        page_size = None
        devices: tuple[Device, ...] | None = None
        at = self._skip(0, b"{")
        while True:
            key, at = self._value(at)
            at = self._skip(at, b":")
            if key == "devices":
                devices, at = self._devices(at)
            else:
                value, at = self._value(at)
                if key == "page_size":
                    page_size = value
            if self._text[at : at + 1] == b",":
                at = self._skip(at, b",")
                continue
            at = self._skip(at, b"}")
            break
        if at != len(self._text):
            raise self._error(at, "the end of vmdesc")
        if devices is None or not isinstance(page_size, int):
            raise LayoutError(self._offset, "vmdesc with page_size and devices", self._text[:32])
        return VmDescription(self._text, page_size, devices)

    def _devices(self, at: int) -> tuple[tuple[Device, ...], int]:
        found: list[Device] = []
        at = self._skip(at, b"[")
        if self._text[at : at + 1] == b"]":
            return (), self._skip(at, b"]")
        while True:
            numbered = _NUMBERED.match(self._chars, at)
            device = numbered and self._repeated(numbered)
            if device is None:
                start = at
                entry, at = self._entry(numbered) or self._value(at)
                device = self._device(entry, start)
                if numbered is not None:
                    self._remember(device, numbered.end())
            elif self._chars.startswith(", {", device.end):
                found.append(device)
                at = device.end + 2
                continue
            else:
                at = self._space(device.end)
            found.append(device)
            if self._text[at : at + 1] == b",":
                at = self._skip(at, b",")
                continue
            return tuple(found), self._skip(at, b"]")

    def _repeated(self, numbered: re.Match[str]) -> Device | None:
        """The device whose entry begins so, if one of that name had the same text behind its instance."""
        name, rest = numbered[1], numbered.end()
        for text, like in self._alike.get(name, ()):
            if self._chars.startswith(text, rest):
                end = rest + len(text)
                return Device(name, int(numbered[2]), numbered.start(), end, like.size, like.entry, like.shapes)
        return None

    def _remember(self, device: Device, rest: int) -> None:
        alike = self._alike.setdefault(device.name, [])
        alike.insert(0, _Alike(self._chars[rest : device.end], device))
        del alike[_MOST_ALIKE:]

    def _entry(self, numbered: re.Match[str] | None) -> tuple[Any, int] | None:
        """What :meth:`_value` finds, if the next device's entry begins where it seems to: then nothing is decoded
        that is not its own. None if it does not."""
        if numbered is None:
            return None
        start = numbered.start()
        following = self._chars.find(_INSTANCE, numbered.end(), start + _FARTHEST)
        end = self._chars.rfind(_BETWEEN, start, following) + 1
        if following < 0 or not end:
            return None
        self._count(start, end)
        try:
            value, length = self._decode(self._chars[start:end])
        except (ValueError, RecursionError):
            return None
        if start + length != end:
            return None
        self._last_end = end
        return value, end

    def _device(self, entry: Any, start: int) -> Device:
        # Trailing white space belongs to no device: the end is where the value's own text ends.
        end = self._last_end
        if not isinstance(entry, dict):
            raise self._error(start, "an object for each device")
        try:
            name = _get(entry, "name", str)
            instance_id = _get(entry, "instance_id", int)
            own_size = entry.get("size")
            size = _number(own_size) if own_size is not None else _vmsd_size(entry)
        except _ShapeError as error:
            raise LayoutError(self._offset + start, str(error), self._text[start : start + 48]) from None
        return Device(name, instance_id, start, end, size, entry)

    def _value(self, at: int) -> tuple[Any, int]:
        """Decode one value; returns it and the offset after it and the white space behind it."""
        size = _WINDOW
        while True:
            self._count(at, at + size)
            window = self._chars[at : at + size]
            whole = at + size >= len(self._chars)
            try:
                value, end = self._decode(window)
            except (ValueError, RecursionError):
                if whole:
                    raise self._error(at, "JSON of vmdesc") from None
            else:
                # Of what ends with the window there may be more.
                if whole or end < len(window):
                    break
            size *= _WIDER
        self._last_end = at + end
        return value, self._space(self._last_end)

    def _count(self, start: int, end: int) -> None:
        """Count the marks of what is about to be decoded, each once.

        :raises LayoutError: decoded, the text would take up much more memory than any real one of its length
        """
        start = max(start, self._counted)
        if start >= end:
            return
        self._counted = end
        for marks, share in _MARKS.items():
            most = _FREE_MARKS + len(self._chars) // share
            self._marks[marks] += sum(self._chars.count(mark, start, end) for mark in marks)
            if self._marks[marks] > most:
                raise LayoutError(self._offset, f"at most {most} of {' '.join(marks)} in vmdesc", "more")

    def _skip(self, at: int, char: bytes) -> int:
        if self._text[at : at + 1] != char:
            raise self._error(at, f"{char.decode()} in vmdesc")
        return self._space(at + 1)

    def _space(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return match.end() if match else at

    def _error(self, at: int, expected: str) -> LayoutError:
        return LayoutError(self._offset + at, expected, self._text[at : at + 24])


class _ShapeError(Exception):
    """An object lacks a key that vmdesc must have there; becomes a LayoutError with its offset."""


def _get(entry: Entry, key: str, type_: type[_T]) -> _T:
    value = entry.get(key)
    if not isinstance(value, type_) or isinstance(value, bool):
        raise _ShapeError(f"a {type_.__name__} {key!r} in each device of vmdesc")
    return value


def _subsection_name(sub: Entry) -> str:
    name = _get(sub, "vmsd_name", str)
    if not 0 < len(name) <= _MAX_NAME or not name.isascii() or not name.isprintable():
        raise _ShapeError("printable names of subsections")
    return name


def _number(value: Any) -> int:
    # True is an int, but not its type.
    if type(value) is not int or not 0 <= value <= _MAX_SIZE:
        raise _ShapeError("sizes of fields as numbers of bytes")
    return value


def _version(sub: Entry) -> int:
    version = _get(sub, "version", int)
    if not 0 <= version < 1 << 32:
        raise _ShapeError("versions of subsections as 32-bit numbers")
    return version


def _list(entry: Entry, key: str) -> Sequence[Any]:
    value = entry.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not _OBJECTS.issuperset(map(type, value)):
        raise _ShapeError(f"a list of objects as {key!r}")
    return value


def _field_size(entry: Entry) -> int:
    """Bytes of one entry of `fields`: its size, times `array_len` where the entry stands for an array."""
    size = _number(entry.get("size"))
    count = entry.get("array_len")
    return size if count is None else size * _number(count)


def _fields_size(vmsd: Entry) -> int:
    return sum(map(_field_size, _list(vmsd, "fields")))


def _vmsd_size(vmsd: Entry, depth: int = 0) -> int:
    """Bytes of a vmsd's fields and all its subsections."""
    if depth > _MAX_DEPTH:
        raise _ShapeError(f"subsections nested at most {_MAX_DEPTH} deep")
    size = _fields_size(vmsd)
    for sub in _list(vmsd, "subsections"):
        size += header_size(_subsection_name(sub)) + _vmsd_size(sub, depth + 1)
    return size


def shape_of(device: Device, body: int, offset: int = 0) -> Shape:
    """How vmdesc divides a section.

    :param body: where the section's fields begin, counted from the section's start
    :param offset: where the section stands in the stream, for errors
    :returns: where its own fields end, and its subsections, in the same count
    :raises LayoutError: the entry lacks what a vmsd's entry must have
    """
    shape = device.shapes.get(body)
    if shape is None:
        try:
            end = body + _fields_size(device.entry)
            shape = device.shapes[body] = end, tuple(_subsections(device.entry, end, 0))
        except _ShapeError as error:
            raise LayoutError(offset, f"{error}, in vmdesc of {device.name!r}", "something else") from None
    return shape


def _subsections(vmsd: Entry, at: int, depth: int) -> Iterator[SubsectionAt]:
    if depth > _MAX_DEPTH:
        raise _ShapeError(f"subsections nested at most {_MAX_DEPTH} deep")
    for sub in _list(vmsd, "subsections"):
        name = _subsection_name(sub)
        payload = at + header_size(name)
        fields_end = payload
        children: list[SubsectionAt] = []
        for entry in _list(sub, "fields"):
            # A struct's subsections follow its fields and are counted in the field's size
            # (vmstate.c:356-411), so they stand at its end.
            fields_end += _field_size(entry)
            inner = entry.get("struct")
            if isinstance(inner, dict) and _list(inner, "subsections"):
                start = fields_end - _field_size(entry) + _fields_size(inner)
                children.extend(_subsections(inner, start, depth + 1))
        children.extend(_subsections(sub, fields_end, depth + 1))
        end = payload + _vmsd_size(sub)
        yield SubsectionAt(name, _version(sub), at, payload, end, tuple(children))
        at = end


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the text: `kind` is string, number, word or the mark itself; offsets in bytes."""

    kind: str
    start: int
    end: int


def tokenize(text: bytes, start: int = 0, end: int | None = None) -> Iterator[Token]:
    """The JSON tokens of ``text[start:end]`` with their offsets in `text`.

    :raises LayoutError: what stands there is no token
    """
    stop = len(text) if end is None else end
    at = start
    while at < stop:
        match = _TOKEN.match(text, at, stop)
        if match is None:
            if text[at:stop].strip(b" \t\r\n"):
                raise LayoutError(at, "a JSON token in vmdesc", text[at : at + 24])
            return
        kind = str(match.lastgroup)
        first, at = match.span(kind)
        yield Token(text[first:at].decode() if kind == "mark" else kind, first, at)


@dataclass(frozen=True, slots=True)
class Splice:
    """Replace ``text[start:end]`` by `new`."""

    start: int
    end: int
    new: bytes


def splice(text: bytes, edits: Sequence[Splice]) -> bytes:
    """The text with all edits made; every byte outside them stays as it is.

    :raises BugError: edits overlap or lie outside the text
    """
    parts: list[bytes] = []
    at = 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        if not at <= edit.start <= edit.end <= len(text):
            raise BugError(f"vmdesc edit {edit.start}-{edit.end} overlaps another or the text's end")
        parts += [text[at : edit.start], edit.new]
        at = edit.end
    return b"".join([*parts, text[at:]])
