# SPDX-License-Identifier: GPL-2.0-or-later
"""Logic of three values: None is "not known"."""

from __future__ import annotations

__all__ = ["Ternary", "all_of", "any_of", "negated"]

Ternary = bool | None


def all_of(*terms: Ternary) -> Ternary:
    """False if any term is; else not known if any is not known; else True."""
    if False in terms:
        return False
    return None if None in terms else True


def any_of(*terms: Ternary) -> Ternary:
    """True if any term is; else not known if any is not known; else False."""
    if True in terms:
        return True
    return None if None in terms else False


def negated(term: Ternary) -> Ternary:
    """The opposite; what is not known stays so."""
    return None if term is None else not term
