# SPDX-License-Identifier: GPL-2.0-or-later
"""How good an outcome is, and in a sentence what it means."""

from __future__ import annotations

from typing import Final

from qmpfilter.relay.session import SENTENCES, Outcome

__all__ = ["UNKNOWN", "manner", "sentence"]

UNKNOWN: Final = "unknown"
"""Of a report that does not say."""

_GOOD: Final = (Outcome.COMPLETED, Outcome.SENT)
_BAD: Final = (Outcome.FAILED, Outcome.REFUSED)


def manner(outcome: str) -> str:
    """One of ``good``, ``bad`` and ``doubt``."""
    return (
        "good"
        if outcome in [one.value for one in _GOOD]
        else "bad"
        if outcome in [one.value for one in _BAD]
        else "doubt"
    )


def sentence(outcome: str) -> str:
    """What it means."""
    known = {one.value: text for one, text in SENTENCES.items()}
    return known.get(outcome, "the report does not say how this ended")
