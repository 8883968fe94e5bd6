# SPDX-License-Identifier: GPL-2.0-or-later
"""When what happened, of the filter and of the QEMUs that were followed, on one axis of seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import Final

from qmpfilter.report.told import Told

__all__ = ["ENDS", "Kind", "Mark", "Span", "Timeline", "timeline"]

ENDS: Final = ("source", "destination")
"""The QEMUs, by the names that a report has for them."""

_FILTER: Final = "filter"
_MOMENTS: Final = {
    "waiting": "waits for the source",
    "connected": "source and destination are connected",
    "return path": "the source opens a return path",
    "tail": "the state of devices begins",
    "committed": "the commit point passes: the destination may start the guest",
    "answered": "the destination gives its word",
    "ended": "over",
}


class Kind(StrEnum):
    """What goes on in a span."""

    MEMORY = "memory"
    PASS = "pass over memory"
    HOLD = "device state held"
    ANSWER = "destination loads and answers"
    STOPPED = "guest stopped"


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment.

    :param at: seconds from the beginning
    :param who: the filter, the source, or the destination
    """

    at: float
    who: str
    what: str


@dataclass(frozen=True, slots=True)
class Span:
    """From one moment to another, in seconds from the beginning."""

    begin: float
    end: float
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """A migration from the source's connection to its end.

    :param begin: second 0
    :param length: seconds
    :param marks: in the order of their time
    """

    begin: datetime
    length: float
    marks: tuple[Mark, ...]
    spans: tuple[Span, ...]

    @property
    def switch_over(self) -> Timeline | None:
        """The part in which the guest changes hosts; None where nothing of it was told."""
        inner = [span for span in self.spans if span.kind in (Kind.HOLD, Kind.ANSWER, Kind.STOPPED)]
        if not inner:
            return None
        begin, end = min(span.begin for span in inner), max(span.end for span in inner)
        spans = (replace(one, begin=one.begin - begin, end=one.end - begin) for one in inner)
        marks = (replace(mark, at=mark.at - begin) for mark in self.marks if begin <= mark.at <= end)
        return Timeline(self.begin, end - begin, tuple(marks), tuple(spans))


def timeline(report: Told) -> Timeline | None:
    """None for a migration that did not come to a connection."""
    moments = {name: moment for name, _ in report.items("moments") if (moment := report.moment("moments", name))}
    begin = moments.get("connected")
    if begin is None:
        return None

    def at(moment: datetime) -> float:
        return (moment - begin).total_seconds()

    marks = [Mark(at(moment), _FILTER, _MOMENTS.get(name, name)) for name, moment in moments.items()]
    passes: list[tuple[float, str]] = []
    for end in ENDS:
        for event in report.each(end, "events"):
            moment = event.moment("at")
            if moment is None:
                continue
            number = event.text("pass")
            marks.append(Mark(at(moment), end, f"pass {number} over memory" if number else event.text("what")))
            if number:
                passes.append((at(moment), number))
    marks.sort(key=lambda mark: mark.at)
    filtered = {name: at(moment) for name, moment in moments.items()}
    memory, *others = _filter_spans(filtered, report.number("seconds", "tail"))
    spans = (memory, *others, *_pass_spans(passes, memory.end), *_stopped_spans(marks, max(filtered.values())))
    # What lies before the connection was waiting, and would leave no room for the rest.
    spans = tuple(replace(span, begin=max(span.begin, 0.0)) for span in spans if span.end > 0)
    length = max([*(mark.at for mark in marks), *(span.end for span in spans)])
    return Timeline(begin, length, tuple(marks), spans)


def _filter_spans(moments: dict[str, float], held: float | None) -> Iterator[Span]:
    end = moments.get("ended", max(moments.values()))
    committed = moments.get("committed")
    # The seconds of the hold were taken from a better clock than the moments.
    tail = moments.get("tail", end) if committed is None else committed - (held or 0.0)
    yield Span(0.0, tail, Kind.MEMORY, "memory, and what else comes before the devices")
    if committed is None:
        if tail < end:
            yield Span(tail, end, Kind.HOLD, "the state of devices, which did not pass")
        return
    if held is not None:
        yield Span(tail, committed, Kind.HOLD, "the state of devices is read, judged and edited")
    answered = moments.get("answered", end)
    yield Span(committed, answered, Kind.ANSWER, "the destination loads the guest and gives its word")


def _pass_spans(passes: list[tuple[float, str]], end: float) -> Iterator[Span]:
    """The last one ends with the memory, after the guest was stopped."""
    bounds = [*passes, (max([end, *(begin for begin, _ in passes)]), "")]
    for (begin, number), (until, _) in pairwise(bounds):
        yield Span(begin, until, Kind.PASS, f"pass {number} over memory")


def _stopped_spans(marks: list[Mark], end: float) -> Iterator[Span]:
    stopped = [mark.at for mark in marks if (mark.who, mark.what) == ("source", "STOP")]
    if stopped:
        resumed = [mark.at for mark in marks if mark.what == "RESUME" and mark.at >= stopped[0]]
        where = "until it ran again" if resumed else "and not seen to run again"
        yield Span(stopped[0], resumed[0] if resumed else max(end, stopped[0]), Kind.STOPPED, where)
