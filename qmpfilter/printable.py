# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of others that is shown to a person."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """With nothing in it that a terminal obeys or that hides other text: such characters are shown as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
