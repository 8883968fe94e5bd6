# SPDX-License-Identifier: GPL-2.0-or-later
"""A report as it was written, read with care: another version may lack anything, and names in it are the guest's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from qmpfilter.printable import printable

__all__ = ["Told"]

# More than there are bytes or seconds of anything; NaN is not less either.
_MOST: Final = 1e24


class Told:
    """A report, or a part of one. What is not there, or of another kind than asked for, is as if it was not told.

    :param value: as :func:`json.loads` gives it
    """

    def __init__(self, value: Any) -> None:
        self._value = value

    def __bool__(self) -> bool:
        return bool(self._value)

    def part(self, *names: str) -> Told:
        """What stands under a name, and under the next one in that."""
        value = self._value
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return Told(value)

    def text(self, *names: str) -> str:
        """In words; empty if it was not told. Nothing in it is obeyed by a terminal."""
        value = self.part(*names)._value
        if isinstance(value, bool):
            return "yes" if value else "no"
        return printable(str(value)) if isinstance(value, (str, int, float)) else ""

    def number(self, *names: str) -> float | None:
        """None if it was not told, or is none that one can draw."""
        value = self.part(*names)._value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _MOST:
            return None
        return float(value)

    def moment(self, *names: str) -> datetime | None:
        """None if it was not told, or is no moment."""
        value = self.part(*names)._value
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        except ValueError:
            return None
        return moment.replace(tzinfo=moment.tzinfo or UTC) if moment else None

    def each(self, *names: str) -> list[Told]:
        """The members of a list."""
        value = self.part(*names)._value
        return [Told(one) for one in value] if isinstance(value, list) else []

    def items(self, *names: str) -> list[tuple[str, Told]]:
        """Names and values of an object."""
        value = self.part(*names)._value
        return (
            [(printable(str(name)), Told(one)) for name, one in value.items()] if isinstance(value, Mapping) else []
        )
