# SPDX-License-Identifier: GPL-2.0-or-later
"""Name and uuid of the domain in a save image, and nothing else of its XML.

The XML may hold passwords and keys. It passes through here in pieces, no piece is kept, reading stops as
soon as both are known, and no error ever quotes it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from xml.parsers import expat

from qmpfilter.errors import ImageError, LimitError

__all__ = ["DomainIdentity", "IdentityReader"]

_MAX_TEXT = 4096


@dataclass(frozen=True, slots=True)
class DomainIdentity:
    """Which domain an image holds.

    :param name: as in the XML; any characters that XML allows, so escape it before it goes to a terminal
    :param uuid: the domain's uuid
    """

    name: str
    uuid: uuid.UUID


class IdentityReader:
    """Takes the domain XML in pieces and ends with a :class:`DomainIdentity`.

    Source: libvirt, docs/formatdomain.rst: ``/domain/name`` and ``/domain/uuid``.

    :param offset: where the XML starts in the image, for errors
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._texts: dict[str, str] = {}
        self._depth = 0
        self._collecting: list[str] | None = None
        self._collected = 0
        self._ended = False
        # libvirt writes UTF-8 without a declaration; a declaration must not choose another encoding.
        self._parser = expat.ParserCreate("utf-8")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        # Entities are declared in a doctype only: without it nothing can expand.
        self._parser.StartDoctypeDeclHandler = self._doctype

    @property
    def done(self) -> bool:
        """Nothing further is needed: both are known, or the terminating NUL was passed."""
        return self._ended or len(self._texts) == 2

    def feed(self, data: bytes) -> None:
        """Take the next piece; what follows the XML's NUL is ignored.

        :raises ImageError: not the XML of a domain
        :raises LimitError: an overlong name or uuid
        """
        if self.done:
            return
        xml, nul, _ = data.partition(b"\0")
        self._ended = bool(nul)
        try:
            self._parser.Parse(xml, False)
        except expat.ExpatError as error:
            raise ImageError(
                self._offset + self._parser.ErrorByteIndex, "the domain XML", expat.ErrorString(error.code)
            ) from None

    def finish(self) -> DomainIdentity:
        """What was found, once all pieces were fed.

        :raises ImageError: name or uuid is missing, or the uuid is none
        """
        # It may still hold a piece of the XML, and it refers back to this object.
        del self._parser
        for tag in ("name", "uuid"):
            if not self._texts.get(tag):
                raise ImageError(self._offset, f"the domain's {tag} in the XML", "none")
        text = self._texts["uuid"].strip()
        try:
            identity = uuid.UUID(text)
        except ValueError:
            expected = "the domain's uuid in the XML"
            raise ImageError(self._offset, expected, "text of another form") from None
        return DomainIdentity(self._texts["name"], identity)

    def _start(self, tag: str, _attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth == 1 and tag != "domain":
            raise ImageError(self._offset, "the XML of a domain", "another root element")
        if self._depth == 2 and tag in ("name", "uuid") and tag not in self._texts:
            self._collecting = []
            self._collected = 0

    def _end(self, tag: str) -> None:
        if self._depth == 2 and self._collecting is not None:
            self._texts[tag] = "".join(self._collecting)
            self._collecting = None
        self._depth -= 1

    def _characters(self, text: str) -> None:
        if self._collecting is None or self._depth != 2:
            return
        self._collected += len(text)
        if self._collected > _MAX_TEXT:
            raise LimitError(
                self._offset + self._parser.CurrentByteIndex,
                f"a name and a uuid of at most {_MAX_TEXT} characters",
                "more",
            )
        self._collecting.append(text)

    def _doctype(self, _name: str, _system: str | None, _public: str | None, _internal: bool) -> None:
        raise ImageError(self._offset + self._parser.CurrentByteIndex, "the domain XML", "a doctype")
