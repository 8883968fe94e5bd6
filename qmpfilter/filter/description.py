# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps vmdesc true: where an edit changed a section's layout, its text is spliced, as QEMU would have written it.

Source: QEMU 10.2.2 migration/vmstate.c:356-411 and 476-566 (what stands in an entry, in which order),
util/json-writer.c (one line, ``", "`` and ``": "``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from construct import Bytes

from qmpfilter.errors import BugError, LayoutError, StreamError, UnsupportedError
from qmpfilter.layout import Field
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DeviceSection
from qmpfilter.wire.sections import check_against_vmdesc
from qmpfilter.wire.vmdesc import Device, Splice, Token, VmDescription, shape_of, splice, tokenize
from qmpfilter.wire.vmsd import Subsection, SubsectionAt, header_size

__all__ = ["described"]

_NESTED: Final = cpu.NESTED_STATE


def described(vmdesc: VmDescription, sections: Sequence[DeviceSection], offset: int) -> bytes:
    """The text after edits.

    :param vmdesc: what the stream's own says
    :param sections: those that an edit divided differently, as they are now
    :param offset: where the text stands in the stream, for errors
    :returns: the same text where no section's layout has changed
    :raises UnsupportedError: the text does not have the shape in which QEMU writes it
    :raises BugError: the new text does not describe the edited sections
    """
    if not sections:
        return vmdesc.text
    devices = {(device.name, device.instance_id): device for device in vmdesc.devices}
    splices: list[Splice] = []
    for section in sections:
        device = devices[section.idstr, section.instance_id]
        told, wanted = _children(shape_of(device, section.body)[1]), _children(section.subsections)
        if told != wanted:
            splices += _splices(vmdesc.text, device, cpu.NESTED_STATE.children[wanted[0]], offset)
    text = splice(vmdesc.text, splices)
    _verify(vmdesc, text, sections)
    return text


def _children(subsections: Sequence[SubsectionAt]) -> list[str]:
    """The names of the children of ``cpu/nested_state``."""
    return [child.name for at in subsections if at.name == _NESTED.name for child in at.children]


def _splices(text: bytes, device: Device, child: Subsection, offset: int) -> Iterator[Splice]:
    """What makes a vCPU's entry tell of that child."""
    try:
        (field,) = _entry(text, device)["fields"].members.values()
        (old,) = field["struct"]["subsections"].members.values()
        size = field["size"]
    except (KeyError, ValueError, StopIteration, RecursionError, LayoutError) as error:
        expected = f"{_NESTED.name} in vmdesc of {device.name!r} {device.instance_id}, as QEMU writes it"
        raise UnsupportedError(
            offset + device.start, expected, f"something else ({type(error).__name__}: {error})"
        ) from error
    new_size = _NESTED.layout.size + header_size(child.name) + child.layout.size
    yield Splice(old.start, old.end, _child_entry(child))
    yield Splice(size.start, size.end, str(new_size).encode())


def _child_entry(child: Subsection) -> bytes:
    fields = ", ".join(_field_entry(child.name.rpartition("/")[2], field) for field in child.layout.fields.values())
    return f'{{"vmsd_name": "{child.name}", "version": {child.version}, "fields": [{fields}]}}'.encode()


def _field_entry(member: str, field: Field) -> str:
    """A field by the name of the C expression that it is in struct kvm_nested_state."""
    if isinstance(field.type, Bytes):
        name = f"data.{member}[0].{field.name}"
        return f'{{"name": "{name}", "array_len": {field.size}, "type": "uint8", "size": 1}}'
    name = f"hdr.{member}.{field.name}"
    return f'{{"name": "{name}", "type": "uint{8 * field.size}", "size": {field.size}}}'


def _verify(old: VmDescription, text: bytes, sections: Sequence[DeviceSection]) -> None:
    try:
        new = old if text == old.text else VmDescription.parse(text)
        devices = {(device.name, device.instance_id): device for device in new.devices}
        for section in sections:
            check_against_vmdesc(section, devices[section.idstr, section.instance_id])
    except StreamError as error:
        raise BugError(f"the edited vmdesc does not describe the edited stream: {error}") from error
    if new is old:
        return
    edited = {(section.idstr, section.instance_id) for section in sections}
    for before, after in zip(old.devices, new.devices, strict=True):
        key = (after.name, after.instance_id)
        same = key in edited or new.text[after.start : after.end] == old.text[before.start : before.end]
        if key != (before.name, before.instance_id) or not same:
            raise BugError(f"the edited vmdesc tells something else of {before.name!r} {before.instance_id}")


# --- JSON with positions -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Value:
    """Where a value stands in the text; members of an object by name, those of a list by number."""

    start: int
    end: int
    members: dict[str | int, _Value]

    def __getitem__(self, key: str) -> _Value:
        return self.members[key]


def _entry(text: bytes, device: Device) -> _Value:
    """The object that describes ``cpu/nested_state``: what comes before it in a vCPU's entry is long, and skipped.

    :raises ValueError: there is none
    :raises LayoutError: no JSON
    """
    name = text.index(f'"{_NESTED.name}"'.encode(), device.start, device.end)
    start = text.rindex(b"{", device.start, name)
    tokens = tokenize(text, start, device.end)
    entry = _value(text, next(tokens), tokens)
    if entry["vmsd_name"].start != name:
        raise ValueError("the name elsewhere")
    return entry


def _value(text: bytes, first: Token, tokens: Iterator[Token]) -> _Value:
    """The value that begins with a token.

    :raises ValueError: a key twice
    """
    members: dict[str | int, _Value] = {}
    if first.kind not in ("{", "["):
        return _Value(first.start, first.end, members)
    while (token := next(tokens)).kind not in ("}", "]"):
        if token.kind == ",":
            continue
        key: str | int = len(members)
        if first.kind == "{":
            key = text[token.start + 1 : token.end - 1].decode()
            next(tokens)
            token = next(tokens)
        if key in members:
            raise ValueError(f"{key!r} twice")
        members[key] = _value(text, token, tokens)
    return _Value(first.start, token.end, members)
