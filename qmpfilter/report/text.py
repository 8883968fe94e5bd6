# SPDX-License-Identifier: GPL-2.0-or-later
"""One migration, or many, as text for a terminal or a file."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qmpfilter.report.figures import forward, seconds, size
from qmpfilter.report.outcome import UNKNOWN, sentence
from qmpfilter.report.summary import TITLES, Summary
from qmpfilter.report.timeline import ENDS, timeline
from qmpfilter.report.told import Told

__all__ = ["report_text", "summary_text"]

_MOST_CHANGES: Final = 20
_BAR: Final = 40
# What of a summary fits 80 columns.
_COLUMNS: Final = ("session", "outcome", "mode", "guest", "took", "held", "edited")


def report_text(report: Told, title: str, width: int) -> str:
    """:param title: the session's name, or where the report was found"""
    outcome = report.text("outcome") or UNKNOWN
    lines = [f"{title}: {outcome}: {sentence(outcome)}"]
    if reason := report.text("reason"):
        lines.append(f"  reason: {reason}")
    lines += [f"  {line}" for line in _facts(report)]
    for head, block in (
        ("timeline", _timeline(report, width)),
        ("channels", _channels(report, width)),
        ("vCPUs", _vcpus(report)),
        ("verdict", _verdict(report)),
        ("as the QEMUs saw it", _ends(report)),
        ("warnings", _warnings(report)),
        ("svm2 records, as files", (one.text() for one in report.each("records"))),
    ):
        inner = list(block)
        if inner:
            lines += ["", head, *(f"  {line}" for line in inner)]
    return "".join(f"{line}\n" for line in lines)


def summary_text(summary: Summary, width: int) -> str:
    """A line for each, its reason under it, and what is worth knowing of all of them."""
    if not summary.rows:
        return "no migrations\n"
    columns = [TITLES.index(title) for title in _COLUMNS]
    cells = [[row.cells[number] for number in columns] for row in summary.rows]
    head, *lines = _table(_COLUMNS, cells, width, whole=_COLUMNS)
    told = [head]
    for line, row in zip(lines, summary.rows, strict=True):
        told += [line, f"    {row.reason}"] if row.reason else [line]
    figures = ", ".join(f"{name}: {value}" for name, value in summary.figures)
    return "".join(f"{line}\n" for line in (*told, "", figures))


def _facts(report: Told) -> Iterator[str]:
    mode = "everything passed as it is (kill switch)" if report.text("switched_off") == "yes" else report.text("mode")
    guest = next(filter(None, (report.text(end, "name") for end in ENDS)), "")
    rows = (
        ("guest", guest),
        ("from", report.text("listen")),
        ("to", report.text("connect")),
        ("machine", report.text("machine")),
        ("mode", mode),
    )
    for name, value in rows:
        if value:
            yield f"{name}: {value}"
    if (count := forward(report)) is not None:
        yield f"{size(count)} to the destination"
    if report.each("vcpus"):
        yield f"{report.text('edited_vcpus')} of {len(report.each('vcpus'))} vCPUs edited"
    for name, path in (("in all", "total"), ("device state held for", "tail")):
        if (span := report.number("seconds", path)) is not None:
            yield f"{name} {seconds(span)}"


def _timeline(report: Told, width: int) -> Iterator[str]:
    line = timeline(report)
    if line is None:
        return
    yield f"seconds after {line.begin:%Y-%m-%d %H:%M:%S} UTC"
    yield from _table((), [(f"{mark.at:+.3f}", mark.who, mark.what) for mark in line.marks], width)


def _channels(report: Told, width: int) -> Iterator[str]:
    rows = [
        (one.text("channel"), one.number("forward") or 0, one.number("backward") or 0)
        for one in report.each("traffic")
    ]
    most = max((max(forward, backward) for _, forward, backward in rows), default=0) or 1
    cells = [
        (name, f"{forward:,.0f}", f"{backward:,.0f}", "#" * max(round(_BAR * forward / most), 1))
        for name, forward, backward in rows
    ]
    if cells:
        yield from _table(
            ("channel", "bytes forward", "bytes back", ""), cells, width, right=("bytes forward", "bytes back")
        )


def _vcpus(report: Told) -> Iterator[str]:
    states = {state.text("index"): state for state in report.each("states")}
    for vcpu in report.each("vcpus"):
        index = vcpu.text("index")
        came = vcpu.text("found")
        yield f"vCPU {index}: {vcpu.text('outcome').replace('_', ' ')}{f', its state came as {came}' if came else ''}"
        for finding in vcpu.each("findings"):
            yield f"  {finding.text('text')} [{finding.text('code')}]"
        yield from (f"  {line}" for line in _changes(states.get(index, Told(None))))


def _changes(state: Told) -> Iterator[str]:
    """What is another after; of a record that is new as a whole only its size."""
    told = 0
    for group, values in state.items("after"):
        before = {name: value.text() for name, value in state.items("before", group)}
        changed = [(name, value.text()) for name, value in values.items() if name in before]
        for name, value in changed[: max(_MOST_CHANGES - told, 0)]:
            yield f"{group} {name}: {before[name]} -> {value or 'gone'}"
        told += len(changed)
        if fresh := len(values.items()) - len(changed):
            yield f"{group}: {fresh} new fields"
    if told > _MOST_CHANGES:
        yield f"and {told - _MOST_CHANGES} more changes, which --html shows"


def _verdict(report: Told) -> Iterator[str]:
    for verdict in report.each("verdicts"):
        yield f"vCPU {verdict.text('index')}: {verdict.text('outcome')}"
        for reason in verdict.each("reasons"):
            yield f"  {reason.text('answer')}: {reason.text('text')} [{reason.text('code')}]"
    missing = ", ".join(one.text() for one in report.each("facts", "missing"))
    if missing:
        yield f"not known of the destination: {missing}"


def _ends(report: Told) -> Iterator[str]:
    for end in ENDS:
        told = report.part(end)
        if not told:
            continue
        migration = told.text("migration", "status") or "not begun"
        error = told.text("migration", "error")
        guest = "gone" if told.text("gone") == "yes" else told.text("guest") or "not known"
        qemu = told.text("qemu") or "of a version not known"
        yield f"{end}, QEMU {qemu}: migration {migration}{f' ({error})' if error else ''}; guest {guest}"
        yield from (f"{end}: {problem.text()}" for problem in told.each("problems"))
    if where := report.text("guest_at"):
        yield f"who has the guest: {where}"


def _warnings(report: Told) -> Iterator[str]:
    yield from (one.text() for one in report.each("warnings"))
    yield from (f"after the commit point: {one.text()}" for one in report.each("after_commit"))


def _table(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int,
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> list[str]:
    """Lines as wide as that at most.

    :param right: columns of numbers
    :param whole: columns that are cut rather than wrapped
    """
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=bool(titles), header_style="")
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", no_wrap=title in (*right, *whole))
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=width, no_color=True, highlight=False).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]
