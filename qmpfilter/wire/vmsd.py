# SPDX-License-Identifier: GPL-2.0-or-later
"""Sections whose layout is known without vmdesc: a fixed block of fields, then subsections.

A section body carries no length and no field tags. What can be known by heart is how many bytes
the fields of a given (idstr, version) take and which subsections may follow them, each of fixed
size too (QEMU 10.2.2 migration/vmstate.c:608-705): ``05 · u8 n · name · be32 version · fields``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from qmpfilter.layout import Layout
from qmpfilter.value_class import value_class

__all__ = ["Subsection", "SubsectionAt", "Vmsd", "header_size"]

_SUBSECTION_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Subsection:
    """A subsection of known layout; `layout` covers its fields, without header and children.

    `children` are those that may follow its fields, by full name. That name need not begin with the
    parent's: those of a struct inside the fields carry the struct's own name.
    """

    layout: Layout
    children: Mapping[str, Subsection] = field(default_factory=dict)
    version: int = _SUBSECTION_VERSION

    @property
    def name(self) -> str:
        """The full name on the wire, for example ``cpu/nested_state``."""
        return self.layout.name


@dataclass(frozen=True, slots=True)
class Vmsd:
    """A section of known layout.

    :param idstr: the section's name on the wire
    :param version: the only version_id for which `size` holds
    :param size: bytes of the fields before any subsection
    :param subsections: what may follow, by full name
    :param binding: True where a section of that version with another layout is refused, because its
        fields are read; False where it is only passed over, and vmdesc may know better
    """

    idstr: str
    version: int
    size: int
    subsections: Mapping[str, Subsection] = field(default_factory=dict)
    binding: bool = False


@value_class
class SubsectionAt:
    """Where a subsection stands in a section: `start` is its type byte, `payload` its first field,
    `end` the byte after its fields and all its children; counted from the start of the section."""

    name: str
    version: int
    start: int
    payload: int
    end: int
    children: tuple[SubsectionAt, ...] = ()

    @property
    def payload_size(self) -> int:
        """Bytes of its own fields."""
        first_child = self.children[0].start if self.children else self.end
        return first_child - self.payload


def header_size(name: str) -> int:
    """Bytes on the wire before a subsection's fields: type, name length, name, be32 version."""
    return 6 + len(name)
