# SPDX-License-Identifier: GPL-2.0-or-later
"""The strict JSON form of the records that hosts share.

A record says its version, has every key of that version and no other. A host reads the version that it writes and the
one before it, so that a cluster may be upgraded host by host; the one after it is refused, because a key that is not
understood may be the one that says "stop".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from qmpfilter.errors import HostError

__all__ = ["VERSION", "Fields", "dumped"]

VERSION: Final = 1
"""Counted up when a key comes, goes, or changes its meaning."""

_READ: Final = (VERSION - 1, VERSION)
_SHOWN: Final = 40
_T = TypeVar("_T")


def dumped(values: Mapping[str, Any]) -> bytes:
    """A record as it is stored."""
    return json.dumps({"version": VERSION, **values}, sort_keys=True, separators=(",", ":")).encode()


class Fields:
    """A JSON object, taken key by key.

    :param where: what it is, for the errors

    :raises HostError: (all methods) a value is missing or of the wrong kind
    """

    def __init__(self, where: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise HostError(f"{where}: expected an object, found {_shown(value)}")
        self._where = where
        self._left: dict[str, Any] = dict(value)

    @classmethod
    def of_record(cls, where: str, data: bytes) -> Fields:
        """Those of a record whose version can be read."""
        try:
            fields = cls(where, json.loads(data))
        except (ValueError, RecursionError) as error:
            raise HostError(f"{where}: a damaged record: no JSON ({error})") from None
        version = fields.count("version")
        if version not in _READ:
            raise HostError(
                f"{where}: a record of version {version}, and this qmpfilter reads up to {VERSION}: upgrade this host"
            )
        return fields

    def text(self, key: str) -> str:
        """A text, which may be empty."""
        return self._take(key, str, "a text")  # type: ignore[no-any-return]  # checked by its kind

    def flag(self, key: str) -> bool:
        """True or false."""
        return bool(self._take(key, bool, "true or false"))

    def count(self, key: str, most: int = 1 << 53) -> int:
        """A whole number from 0."""
        value = self._take(key, int, "a whole number")
        if isinstance(value, bool) or not 0 <= value <= most:
            raise self._wrong(key, f"a whole number from 0 to {most}", value)
        return int(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self._take(key, list, "a list")
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(key, "a list of texts", values)
        return tuple(values)

    def object(self, key: str) -> dict[str, Any]:
        """An object as it is."""
        return dict(self._take(key, dict, "an object"))

    def fields(self, key: str) -> Fields:
        """An object, to be taken key by key."""
        return Fields(f"{self._where}: {key}", self.object(key))

    def optional(self, key: str) -> Fields | None:
        """The same, None where the key is missing."""
        return self.fields(key) if key in self._left else None

    def rows(self, key: str, read: Callable[[Fields], _T]) -> tuple[_T, ...]:
        """A list of objects."""
        rows = self._take(key, list, "a list")
        return tuple(read(Fields(f"{self._where}: {key}[{number}]", row)) for number, row in enumerate(rows))

    def each(self, key: str, read: Callable[[Fields, str], _T]) -> dict[str, _T]:
        """An object whose keys are names."""
        inner = self.fields(key)
        return {name: read(inner, name) for name in list(inner._left)}

    def choice(self, key: str, kind: Callable[[str], _T], among: tuple[Any, ...]) -> _T:
        """One of some texts, as a member of an enumeration."""
        value = self.text(key)
        if value not in among:
            raise self._wrong(key, f"one of {', '.join(among)}", value)
        return kind(value)

    def end(self) -> None:
        """There is nothing more than what was taken."""
        if self._left:
            raise HostError(f"{self._where}: not understood: {', '.join(sorted(self._left))}")

    def _take(self, key: str, kind: type, what: str) -> Any:
        if key not in self._left:
            raise HostError(f"{self._where}: {key} is missing")
        value = self._left.pop(key)
        if not isinstance(value, kind):
            raise self._wrong(key, what, value)
        return value

    def _wrong(self, key: str, expected: str, value: Any) -> HostError:
        return HostError(f"{self._where}: {key}: expected {expected}, found {_shown(value)}")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
