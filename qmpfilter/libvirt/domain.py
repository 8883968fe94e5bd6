# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain's XML: who it is, and one element of its metadata, replaced in the text and not by way of a tree.

What stands elsewhere stays as it is to the byte: other programs keep their own state in metadata, and libvirt
compares the rest.

Source: libvirt 11.3 docs/schemas/domaincommon.rng and src/conf/domain_conf.c (virDomainDefSetMetadata: one element
for each namespace).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from qmpfilter.errors import HostError

__all__ = ["DomainXml", "Element"]

# A tag, with what stands in quotes as a whole.
_TAG: Final = re.compile(rb"""<(?:[^'"<>]|"[^"]*"|'[^']*')*>""")
_SEPARATOR: Final = " "
_METADATA: Final = ("domain", "metadata")
# Attributes below <devices> that name a TCP port or a path on which QEMU listens for somebody else.
_PORTS: Final = ("port", "tlsPort", "websocket", "service")
_PATHS: Final = ("path", "socket")
_INDENT: Final = "    "


@dataclass(frozen=True, slots=True)
class Element:
    """An element without content, as libvirt keeps it for one namespace.

    :param uri: the namespace
    :param prefix: that stands for it
    """

    uri: str
    prefix: str
    name: str
    attributes: Mapping[str, str]

    def __str__(self) -> str:
        attributes = "".join(f" {name}={quoteattr(value)}" for name, value in self.attributes.items())
        return f"<{self.prefix}:{self.name} xmlns:{self.prefix}={quoteattr(self.uri)}{attributes}/>"


@dataclass(slots=True)
class _Place:
    """Where an element stands in the bytes."""

    start: int
    inner: int
    close: int = 0
    end: int = 0

    @property
    def is_empty(self) -> bool:
        return self.close == self.end


class DomainXml:
    """A domain's XML as libvirt formats it.

    :ivar name: of the domain
    :ivar uuid: of the domain, empty where it has none yet
    :ivar ports: TCP ports that its devices listen on
    :ivar paths: unix sockets, and files, that its devices have
    :raises HostError: it is not the XML of a domain
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = ""
        self.uuid = ""
        self.ports: set[int] = set()
        self.paths: set[str] = set()
        self._data = text.encode()
        self._path: list[str] = []
        self._open: list[_Place] = []
        self._name_end = 0
        self._metadata: _Place | None = None
        self._elements: dict[str, tuple[_Place, dict[str, str]]] = {}
        parser = self._parser = expat.ParserCreate("utf-8", namespace_separator=_SEPARATOR)
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        try:
            parser.Parse(self._data, True)
        except expat.ExpatError as error:
            raise HostError(f"no XML of a domain: {error}") from error
        if not self.name:
            raise HostError("no XML of a domain: it has no name")

    def attributes(self, uri: str) -> Mapping[str, str] | None:
        """Those of the element that metadata has for a namespace, None if it has none."""
        found = self._elements.get(uri)
        return None if found is None else found[1]

    def with_element(self, element: Element) -> str:
        """The XML with this element in the place of the one for its namespace, or beside the others."""
        if element.uri in self._elements:
            place = self._elements[element.uri][0]
            return self._replaced(place.start, place.end, str(element))
        row = f"{_INDENT}{element}\n"
        if self._metadata is None:
            return self._replaced(self._name_end, self._name_end, f"\n  <metadata>\n{row}  </metadata>")
        if self._metadata.is_empty:
            whole = f"<metadata>\n{row}  </metadata>"
            return self._replaced(self._metadata.start, self._metadata.end, whole)
        at = self._row_start(self._metadata.close)
        return self._replaced(at, at, row if at < self._metadata.close else str(element))

    def without_element(self, uri: str) -> str:
        """The XML without the element for a namespace, and as it is if it has none."""
        if uri not in self._elements:
            return self.text
        place = self._elements[uri][0]
        start, end = self._row_start(place.start), place.end
        if self._data[end : end + 1] == b"\n" and start < place.start:
            end += 1
        return self._replaced(start, end, "")

    def _row_start(self, at: int) -> int:
        """Where the row begins that holds nothing before `at`, else `at`."""
        start = self._data.rfind(b"\n", 0, at) + 1
        return start if not self._data[start:at].strip() else at

    def _replaced(self, start: int, end: int, text: str) -> str:
        return (self._data[:start] + text.encode() + self._data[end:]).decode()

    # --- expat ---------------------------------------------------------------------------------

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        uri, _, local = name.rpartition(_SEPARATOR)
        at = self._parser.CurrentByteIndex
        tag = _TAG.match(self._data, at)
        if tag is None:
            raise HostError("no XML of a domain: a tag that does not end")
        place = _Place(at, tag.end())
        if tag.group().endswith(b"/>"):
            place.close = place.end = tag.end()
        above = tuple(self._path)
        if above == _METADATA and uri:
            self._elements.setdefault(uri, (place, dict(attributes)))
        elif (*above, name) == _METADATA and self._metadata is None:
            self._metadata = place
        elif above[:2] == ("domain", "devices"):
            self.ports.update(int(attributes[key]) for key in _PORTS if attributes.get(key, "").isdigit())
            self.paths.update(attributes[key] for key in _PATHS if key in attributes)
        elif not above and name != "domain":
            raise HostError(f"no XML of a domain: it begins with {local}")
        self._path.append(name)
        self._open.append(place)

    def _end(self, _: str) -> None:
        place = self._open.pop()
        if not place.end:
            place.close = self._parser.CurrentByteIndex
            place.end = self._data.index(b">", place.close) + 1
        if self._path == ["domain", "name"]:
            self._name_end = place.end
        self._path.pop()

    def _characters(self, text: str) -> None:
        if self._path == ["domain", "name"]:
            self.name += text
        elif self._path == ["domain", "uuid"]:
            self.uuid += text

    def _refuse_doctype(self, *_: object) -> None:
        raise HostError("no XML of a domain: it declares a document type")
