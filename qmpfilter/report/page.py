# SPDX-License-Identifier: GPL-2.0-or-later
"""One migration as a page of HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from qmpfilter.report.figures import forward, seconds, size
from qmpfilter.report.html import Html, document, element, joined, table
from qmpfilter.report.outcome import UNKNOWN, manner, sentence
from qmpfilter.report.timeline import ENDS, Kind, Span, Timeline, timeline
from qmpfilter.report.told import Told

__all__ = ["badge", "page", "tiles"]

_COLOURS: Final = {
    Kind.MEMORY: "memory", Kind.PASS: "pass", Kind.HOLD: "hold", Kind.ANSWER: "answer", Kind.STOPPED: "stopped",
}  # fmt: skip
_LANES: Final = (
    ("guest memory", (Kind.PASS,)),
    ("filter", (Kind.MEMORY, Kind.HOLD, Kind.ANSWER)),
    ("guest stopped", (Kind.STOPPED,)),
)
_TICKS: Final = 4
# So much of the axis has room for words.
_ROOMY: Final = 0.2
_ABSENT: Final = "-"


def page(report: Told, title: str) -> str:
    """:param title: the session's name, or where the report was found"""
    parts = (
        _head(report, title), _timeline(report), _channels(report), _vcpus(report), _verdict(report), _ends(report),
        _words(report), _rest(report),
    )  # fmt: skip
    return document(f"{title}: {report.text('outcome') or UNKNOWN}", *parts)


def badge(outcome: str) -> Html:
    """An outcome, by its word and its colour."""
    return element("span", outcome, class_=f"outcome {manner(outcome)}")


def tiles(figures: Sequence[tuple[str, str]]) -> Html:
    """Figures and what they are of."""
    return element(
        "div",
        *(element("div", element("b", value), element("span", name), class_="tile") for name, value in figures),
        class_="tiles",
    )


def _head(report: Told, title: str) -> Html:
    outcome = report.text("outcome") or UNKNOWN
    names = [report.text(end, "name") for end in ENDS]
    guest = next(filter(None, names), "")
    reason = report.text("reason")
    mode = "off (kill switch)" if report.text("switched_off") == "yes" else report.text("mode")
    figures = [("guest", guest), ("mode", mode), ("machine", report.text("machine"))]
    for name, *path in (("in all", "seconds", "total"), ("device state held", "seconds", "tail")):
        if (value := report.number(*path)) is not None:
            figures.append((name, seconds(value)))
    if downtime := report.number("source", "migration", "milliseconds", "downtime"):
        figures.append(("guest stopped, the source says", seconds(downtime / 1e3)))
    if (count := forward(report)) is not None:
        figures.append(("to the destination", size(count)))
    edited = report.text("edited_vcpus")
    if edited:
        figures.append(("vCPUs edited", f"{edited} of {len(report.each('vcpus'))}"))
    way = f"{report.text('listen')} → {report.text('connect')}" if report.text("connect") else ""
    return joined((
        badge(outcome),
        element("h1", title),
        element("p", sentence(outcome)),
        element("p", "Reason: ", reason) if reason else "",
        element("p", way, class_="faint") if way else "",
        tiles([(name, value) for name, value in figures if value]),
    ))  # fmt: skip


# --- when what happened ------------------------------------------------------------------------


def _timeline(report: Told) -> Html:
    line = timeline(report)
    if line is None:
        return _section("Timeline", element("p", "Source and destination were never connected."))
    enlarged = line.switch_over
    parts = [_lanes(line)]
    if enlarged is not None and 0 < enlarged.length < line.length:
        parts += [element("h3", "The switch-over, enlarged"), _lanes(enlarged)]
    rows = [(_offset(mark.at), mark.who, mark.what) for mark in line.marks]
    moments = table((f"after {line.begin:%Y-%m-%d %H:%M:%S} UTC", "who", "what"), rows)
    return _section(
        "Timeline", *parts, element("details", element("summary", f"All {len(rows)} moments"), moments, open="")
    )


def _lanes(line: Timeline) -> Html:
    length = line.length or 1.0
    lanes = []
    for name, kinds in _LANES:
        spans = [span for span in line.spans if span.kind in kinds]
        if spans:
            lanes.append(_lane(name, [_bar(span, length) for span in spans]))
    for end in ENDS:
        marks = [mark for mark in line.marks if mark.who == end and 0 <= mark.at <= length]
        if marks:
            drawn = [
                element(
                    "div",
                    class_="mark",
                    style=f"left:{_percent(mark.at, length)}",
                    title=f"{_offset(mark.at)} {mark.what}",
                )
                for mark in marks
            ]
            lanes.append(_lane(f"{end}'s QEMU", drawn))
    ticks = [
        element("span", seconds(length * n / _TICKS), style=f"left:{100 * n / _TICKS:g}%") for n in range(_TICKS + 1)
    ]
    axis = element("div", element("div"), element("div", *ticks, class_="ticks"), class_="lane")
    return joined((*lanes, axis, _legend(line.spans)))


def _legend(spans: Sequence[Span]) -> Html:
    """What the colours are, and how long each took in all: a bar may be too narrow for words."""
    entries = []
    for kind, colour in _COLOURS.items():
        of_kind = [span.end - span.begin for span in spans if span.kind is kind]
        if of_kind:
            square = element("i", style=f"background:var(--{colour})")
            entries.append(element("span", square, f"{kind.value}, {seconds(sum(of_kind))}"))
    return element("div", *entries, class_="legend")


def _lane(name: str, drawn: Sequence[Html]) -> Html:
    return element("div", element("div", name), element("div", *drawn, class_="track"), class_="lane")


def _bar(span: Span, length: float) -> Html:
    took = seconds(span.end - span.begin)
    style = (
        f"left:{_percent(span.begin, length)};width:{_percent(span.end - span.begin, length)};"
        f"background:var(--{_COLOURS[span.kind]})"
    )
    name = span.text if span.kind is Kind.PASS else span.kind.value
    inside = f"{name}, {took}" if span.end - span.begin > _ROOMY * length else ""
    return element("div", inside, class_="bar", style=style, title=f"{span.text}: {took}")


def _percent(value: float, whole: float) -> str:
    return f"{min(max(100 * value / whole, 0), 100):.3f}%"


def _offset(at: float) -> str:
    return f"{at:+.3f} s"


# --- what passed -------------------------------------------------------------------------------


def _channels(report: Told) -> Html:
    rows = [
        (one.text("channel"), one.number("forward") or 0.0, one.number("backward") or 0.0)
        for one in report.each("traffic")
    ]
    if not rows:
        return Html("")
    most = max(max(forward, backward) for _, forward, backward in rows) or 1.0
    body = [
        (f"{number}", name, _number(forward), _share(forward, most), _number(backward), _share(backward, most))
        for number, (name, forward, backward) in enumerate(rows)
    ]
    return _section("Channels", table(("", "channel", "bytes forward", "", "bytes back", ""), body))


def _number(count: float) -> Html:
    return element("div", f"{count:,.0f}", class_="number")


def _share(count: float, most: float) -> Html:
    return element("span", class_="share", style=f"width:{8 * count / most:.2f}rem") if count else Html("")


def _vcpus(report: Told) -> Html:
    states = {state.text("index"): state for state in report.each("states")}
    vcpus = {vcpu.text("index"): vcpu for vcpu in report.each("vcpus")}
    if not vcpus and not states:
        return Html("")
    would = report.text("mode") == "observe"
    note = (
        element("p", "The mode was observe: nothing was changed. What would have been is shown.")
        if would
        else Html("")
    )
    rows = [
        (index, vcpu.text("found") or _ABSENT, vcpu.text("outcome").replace("_", " "), _findings(vcpu))
        for index, vcpu in vcpus.items()
    ]
    overview = table(("vCPU", "its state came as", "and was", "findings"), rows) if rows else Html("")
    details = [_vcpu(index, vcpus.get(index, Told(None)), state) for index, state in states.items()]
    return _section("vCPUs", note, overview, *details)


def _findings(vcpu: Told) -> Html:
    findings = vcpu.each("findings")
    lines = [
        element("div", element("code", finding.text("code")), f" {finding.text('text')}") for finding in findings
    ]
    return joined(lines or ["none"])


def _vcpu(index: str, vcpu: Told, state: Told) -> Html:
    inexact = [(one.text("field"), one.text("confidence"), one.text("why")) for one in vcpu.each("inexact")]
    groups = list(_groups(state))
    parts: list[Html] = [element("h3", f"vCPU {index}: state before and after"), *groups]
    if inexact:
        summary = f"{len(inexact)} fields of the new state that are not exact copies"
        parts.append(element("details", element("summary", summary), table(("field", "how", "why"), inexact)))
    return joined(parts)


def _groups(state: Told) -> Iterator[Html]:
    before = dict(state.items("before"))
    after = dict(state.items("after"))
    for group in before | after:
        old = {name: value.text() for name, value in before.get(group, Told(None)).items()}
        new = {name: value.text() or _ABSENT for name, value in after.get(group, Told(None)).items()}
        changed = [name for name in new if name in old]
        added = [name for name in new if name not in old]
        marks = [element("mark", f"{len(changed)} changed", class_="changed")] if changed else []
        marks += [element("mark", f"{len(added)} new", class_="new")] if added else []
        # What differs first.
        names = [*changed, *added, *(name for name in old if name not in new)]
        rows = [_value(name, old.get(name), new.get(name)) for name in names]
        head = element("tr", *(element("th", title, scope="col") for title in ("field", "before", "after", "")))
        values = element("table", element("thead", head), element("tbody", *rows), class_="values")
        summary = element("summary", f"{group}, {len(rows)} fields ", *marks)
        # What is new stands in the record as a whole; what was changed is looked for.
        opened = {"open": ""} if changed else {}
        yield element("details", summary, element("div", values, class_="wide"), **opened)


def _value(name: str, old: str | None, new: str | None) -> Html:
    if new is None:
        return element(
            "tr", element("td", name), element("td", old or _ABSENT), element("td", "the same"), element("td")
        )
    word = "new" if old is None else "changed"
    cells = (name, _ABSENT if old is None else old or _ABSENT, new, word)
    return element("tr", *(element("td", cell) for cell in cells), class_=word)


# --- what was said of it -----------------------------------------------------------------------


def _verdict(report: Told) -> Html:
    facts = [(name, value.text()) for name, value in report.items("facts") if value.text()]
    missing = [one.text() for one in report.each("facts", "missing")]
    rows = [
        (verdict.text("index"), verdict.text("outcome"), element("code", reason.text("code")), reason.text("answer"),
         reason.text("text"))
        for verdict in report.each("verdicts")
        for reason in verdict.each("reasons") or [Told(None)]
    ]  # fmt: skip
    known = ", ".join(f"{name} {value}" for name, value in facts)
    parts = [element("p", "Of the destination was known: ", known or "nothing", ".")]
    if missing:
        parts.append(element("p", "Not known: ", ", ".join(missing), "."))
    if rows:
        parts.append(table(("vCPU", "verdict", "code", "answer", "why"), rows))
    return _section("Verdict", *parts) if rows or facts or missing else Html("")


def _ends(report: Told) -> Html:
    ends = [end for end in ENDS if report.part(end)]
    if not ends:
        return Html("")
    rows: list[tuple[Html | str, ...]] = [
        ("guest", *(_of(report, end, "name") for end in ends)),
        ("QEMU", *(_of(report, end, "qemu") for end in ends)),
        ("migration", *(_of(report, end, "migration", "status") for end in ends)),
        ("error", *(_of(report, end, "migration", "error") for end in ends)),
        ("guest is", *("gone" if report.text(end, "gone") == "yes" else _of(report, end, "guest") for end in ends)),
        ("total", *(_milliseconds(report, end, "total") for end in ends)),
        ("downtime", *(_milliseconds(report, end, "downtime") for end in ends)),
        ("memory", *(_bytes(report, end, "total") for end in ends)),
        ("memory sent", *(_bytes(report, end, "transferred") for end in ends)),
        *(("problem", *(problem.text() if other == end else "" for other in ends))
          for end in ends for problem in report.each(end, "problems")),
    ]  # fmt: skip
    where = report.text("guest_at")
    said = element("p", "Both were asked who has the guest: ", element("b", where), ".") if where else Html("")
    return _section("As the QEMUs saw it", said, table(("", *ends), rows))


def _of(report: Told, *path: str) -> str:
    return report.text(*path) or _ABSENT


def _milliseconds(report: Told, end: str, name: str) -> str:
    value = report.number(end, "migration", "milliseconds", name)
    return seconds(value / 1e3) if value else _ABSENT


def _bytes(report: Told, end: str, name: str) -> str:
    value = report.number(end, "migration", "ram", name)
    return size(value) if value else _ABSENT


def _words(report: Told) -> Html:
    warnings = [one.text() for one in report.each("warnings")]
    late = [
        f"After the commit point, where nothing stops a migration any more: {one.text()}"
        for one in report.each("after_commit")
    ]
    words = warnings + late
    return _section("Warnings", *(element("p", text) for text in words)) if words else Html("")


def _rest(report: Told) -> Html:
    rows = [
        ("return path", report.text("return_path")),
        ("verdict is", report.text("verdict")),
        ("asked by", report.text("asked_by")),
        ("pages of VMCB12 read", report.text("vmcb12_pages_read")),
        ("uuid", report.text("source", "uuid")),
        ("SHA-256 of the devices' state, as it came", report.text("tail_sha256", "before")),
        ("as it went", report.text("tail_sha256", "after")),
        *(("svm2 record, as a file", one.text()) for one in report.each("records")),
    ]
    return _section("More", table(("", ""), [(name, element("code", value)) for name, value in rows if value]))


def _section(title: str, *inner: Html | str) -> Html:
    return element("section", element("h2", title), *inner)
