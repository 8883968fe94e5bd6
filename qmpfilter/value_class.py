# SPDX-License-Identifier: GPL-2.0-or-later
"""Values that are made by the hundred while a guest stands still."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

__all__ = ["value_class"]

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value_class(cls: type[_T]) -> type[_T]:
    """Make a class a dataclass with slots that nobody may change.

    That is for the type checker to see. At run time nothing stops whoever tries: a frozen dataclass sets its fields
    one call each, and to make one of ten fields takes five times as long.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
