# SPDX-License-Identifier: GPL-2.0-or-later
"""Many migrations at once: what became of them, and the worst that the filter cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from qmpfilter.report.figures import seconds, size
from qmpfilter.report.html import document, element, table
from qmpfilter.report.outcome import UNKNOWN, sentence
from qmpfilter.report.page import badge, tiles
from qmpfilter.report.told import Told

__all__ = ["TITLES", "Row", "Summary", "summary_page"]

TITLES = ("session", "outcome", "mode", "guest", "from", "to", "took", "held", "bytes", "edited", "reason")
"""Of the columns, in the order in which :meth:`Row.cells` gives them."""


class Row(NamedTuple):
    """One migration.

    :param held: seconds for which the state of devices was held, None if it was not or nobody knows
    """

    session: str
    report: Told
    held: float | None

    @property
    def outcome(self) -> str:
        """By its word."""
        return self.report.text("outcome") or UNKNOWN

    def cells(self) -> tuple[str, ...]:
        """In words."""
        told = self.report
        took, moved = told.number("seconds", "total"), told.number("bytes", "forward")
        return (
            self.session,
            self.outcome,
            "off" if told.text("switched_off") == "yes" else told.text("mode"),
            told.text("source", "name"),
            told.text("listen"),
            told.text("connect"),
            "" if took is None else seconds(took),
            "" if self.held is None else seconds(self.held),
            "" if moved is None else size(moved),
            told.text("edited_vcpus"),
            told.text("reason"),
        )


class Summary:
    """Of reports, by the names of their sessions.

    :ivar rows: in the order in which they were given
    :ivar outcomes: how many there are of each, the most frequent first
    """

    def __init__(self, reports: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        self.rows: list[Row] = []
        for session, report in reports:
            told = Told(report)
            self.rows.append(Row(session, told, told.number("seconds", "tail")))
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
        edited = sum(row.report.number("edited_vcpus") or 0 for row in self.rows)
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
            *row.cells()[2:-1],
            element("div", row.cells()[-1], class_="reason"),
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
