# SPDX-License-Identifier: GPL-2.0-or-later
"""Many migrations at once: what became of them, and the worst that the filter cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from qmpfilter.report.figures import forward, seconds, size
from qmpfilter.report.html import document, element, table
from qmpfilter.report.outcome import UNKNOWN, sentence
from qmpfilter.report.page import badge, tiles
from qmpfilter.report.told import Told

__all__ = ["TITLES", "Row", "Summary", "summary_page"]

TITLES = ("session", "outcome", "mode", "guest", "from", "to", "took", "held", "bytes", "edited", "reason")
"""Of the columns, in the order in which a row's cells have them."""


class Row(NamedTuple):
    """One migration; of its report only what a summary tells, because there may be thousands.

    :param outcome: by its word
    :param held: seconds for which the state of devices was held, None if it was not or nobody knows
    :param edited: how many vCPUs were edited
    :param cells: all columns in words
    """

    outcome: str
    held: float | None
    edited: float
    reason: str
    cells: tuple[str, ...]

    @property
    def session(self) -> str:
        """Its name."""
        return self.cells[0]

    @classmethod
    def of(cls, session: str, told: Told) -> Row:
        """From its report."""
        took, held, moved = told.number("seconds", "total"), told.number("seconds", "tail"), forward(told)
        outcome, reason = told.text("outcome") or UNKNOWN, told.text("reason")
        cells = (
            session,
            outcome,
            "off" if told.text("switched_off") == "yes" else told.text("mode"),
            told.text("source", "name"),
            told.text("listen"),
            told.text("connect"),
            "" if took is None else seconds(took),
            "" if held is None else seconds(held),
            "" if moved is None else size(moved),
            told.text("edited_vcpus"),
            reason,
        )
        return cls(outcome, held, told.number("edited_vcpus") or 0.0, reason, cells)


class Summary:
    """Of reports, by the names of their sessions.

    :ivar rows: in the order in which they were given
    :ivar outcomes: how many there are of each, the most frequent first
    """

    def __init__(self, reports: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        self.rows = [Row.of(session, Told(report)) for session, report in reports]
        self.outcomes = Counter(row.outcome for row in self.rows).most_common()

    @property
    def worst(self) -> Row | None:
        """The one whose devices' state was held longest."""
        held = [row for row in self.rows if row.held is not None]
        return max(held, key=lambda row: row.held or 0.0, default=None)

    @property
    def figures(self) -> list[tuple[str, str]]:
        """What of all of them is worth knowing at once, and what it is of."""
        found = [("migrations", str(len(self.rows))), *((outcome, str(count)) for outcome, count in self.outcomes)]
        edited = sum(row.edited for row in self.rows)
        found.append(("vCPUs edited", f"{edited:.0f}"))
        worst = self.worst
        if worst is not None and worst.held is not None:
            found.append((f"longest hold, {worst.session}", seconds(worst.held)))
        return found


def summary_page(summary: Summary, title: str) -> str:
    """All of them as a page of HTML."""
    rows = [
        (
            element("code", row.session),
            badge(row.outcome),
            *row.cells[2:-1],
            element("div", row.reason, class_="reason"),
        )
        for row in summary.rows
    ]
    meanings = [(badge(outcome), sentence(outcome)) for outcome, _ in summary.outcomes]
    return document(
        title,
        element("h1", title),
        tiles([(name, value) for name, value in summary.figures]),
        element(
            "section", element("h2", "Migrations"), table(TITLES, rows) if rows else element("p", "There are none.")
        ),
        element("section", element("h2", "What the outcomes mean"), table(("", ""), meanings)) if meanings else "",
    )
