# SPDX-License-Identifier: GPL-2.0-or-later
"""vmdesc: the JSON text after EOF that names every field of every device section, with its size.

It is the only place where the sizes of device sections stand. The text is kept as it came and is
edited by splicing at recorded offsets, never by way of what it was decoded to: keys may repeat inside
one object, and only what sizes need is kept (:mod:`qmpfilter.wire.vmdesc_entry`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from qmpfilter.errors import BugError, LayoutError
from qmpfilter.value_class import value_class
from qmpfilter.wire.vmdesc_entry import DeviceEntry, Shape, decode, from_json

__all__ = ["Device", "Splice", "Token", "VmDescription", "shape_of", "splice", "tokenize"]

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
# How QEMU begins the entry of a device, and what of that stands nowhere else.
_NUMBERED: Final = re.compile(r'\{"name": "([ !#-\[\]-~]+)", "instance_id": (0|[1-9][0-9]{0,9}), (?=")')
_BETWEEN: Final = '}, {"name": "'
_INSTANCE: Final = '", "instance_id": '
_MOST_ALIKE: Final = 8
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
# Of an entry that is none, for the error.
_SHOWN: Final = 48
_TOKEN: Final = re.compile(
    rb"""[ \t\r\n]*(?:
        (?P<string>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")
      | (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)
      | (?P<word>true|false|null)
      | (?P<mark>[][{}:,])
    )""",
    re.VERBOSE,
)


@value_class
class Device:
    """One entry of `devices`: a FULL section, in the order of the stream.

    :param start: offset of its ``{`` in the text
    :param end: offset after its ``}``
    :param size: bytes of the section between its header and its footer, as the text says
    :param entry: what the text says of its parts; the first one's for all devices whose entries differ in their
        instance alone
    :param shapes: what :func:`shape_of` found so far, by `body`, shared in the same way
    """

    name: str
    instance_id: int
    start: int
    end: int
    size: int
    entry: DeviceEntry = field(repr=False)
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
    """Walks the top level by hand, for the offsets, and has each value below it decoded.

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
                device = self._quickly(numbered) or self._thoroughly(at)
                # A key may come again, and the last one counts.
                if numbered is not None and (device.name, device.instance_id) == (numbered[1], int(numbered[2])):
                    self._remember(device, numbered.end())
            found.append(device)
            if self._chars.startswith(", {", device.end):
                at = device.end + 2
                continue
            at = self._space(device.end)
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

    def _quickly(self, numbered: re.Match[str] | None) -> Device | None:
        """The next device, if its entry begins and ends where it seems to; None if it does not."""
        if numbered is None:
            return None
        start = numbered.start()
        following = self._chars.find(_INSTANCE, numbered.end(), start + _FARTHEST)
        end = self._chars.rfind(_BETWEEN, start, following) + 1
        if following < 0 or not end:
            return None
        try:
            return self._device(decode(memoryview(self._text)[start:end]), start, end)
        except (ValueError, RecursionError):
            return None

    def _thoroughly(self, start: int) -> Device:
        """The next device, wherever its entry ends.

        :raises LayoutError: there is none
        """
        value, _ = self._value(start)
        # White space behind it belongs to no device.
        end = self._last_end
        try:
            return self._device(from_json(value), start, end)
        except (ValueError, RecursionError) as error:
            found = self._text[start : start + _SHOWN]
            raise LayoutError(self._offset + start, f"a device in vmdesc ({error})", found) from None

    @staticmethod
    def _device(entry: DeviceEntry, start: int, end: int) -> Device:
        return Device(entry.name, entry.instance_id, start, end, entry.size, entry)

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
        """Count the marks of what is about to be decoded to objects and lists of any kind, each once.

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


def shape_of(device: Device, body: int, offset: int = 0) -> Shape:
    """How vmdesc divides a section.

    :param body: where the section's fields begin, counted from the section's start
    :param offset: where the section stands in the stream, for errors
    :returns: where its own fields end, and its subsections, in the same count
    :raises LayoutError: subsections that are nested too deep
    """
    shape = device.shapes.get(body)
    if shape is None:
        try:
            shape = device.shapes[body] = device.entry.shape(body)
        except ValueError as error:
            raise LayoutError(offset, f"in vmdesc of {device.name!r} no {error}", "some") from None
    return shape


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
