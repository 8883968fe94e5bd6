# SPDX-License-Identifier: GPL-2.0-or-later
"""A page has all that a report has, and nothing in a report gets out of its place."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from qmpfilter.relay.session import Outcome
from qmpfilter.report.page import page
from qmpfilter.report.told import Told
from tests.report.samples import SESSION, hostile, sample

VOID = ("meta",)
# What loads something, or runs.
FORBIDDEN = ("script", "link", "img", "iframe", "object", "embed", "base", "form", "a", "svg", "video", "audio")


class Read(HTMLParser):
    """What a browser would see: elements that are closed as they were opened, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""


def read(report: Any) -> Read:
    return Read(page(Told(report), SESSION))


def test_all_of_it_is_there() -> None:
    report = sample()
    seen = read(report).text
    (before,) = [state["before"] for state in report["states"]]
    for text in (
        SESSION, "completed", "the destination runs the guest", "a guest", "annex", report["machine"],
        f"{report['bytes']['forward']:,}", "pass 1 over memory", "guest stopped", "device state held",
        "the commit point passes", "the source opens a return path", "no-nesting", report["tail_sha256"]["after"],
        "10.0.2", "postmigrate", "Both were asked who has the guest: destination", before["registers"]["cr3"],
        "svm2 vmcb12 save, 70 fields 70 new", "vmcb12_save.g_pat", *report["records"],
    ):  # fmt: skip
        assert text in seen


def test_what_differs_is_marked() -> None:
    report = sample()
    report["states"][0]["after"] = {"registers": {"dr7": "0x400"}, "svm2": {"flags": "CONVERTED"}}
    report["states"][0]["before"]["registers"] |= {"dr7": "0x700"}
    seen = page(Told(report), SESSION)
    assert '<tr class="changed"><td>dr7</td><td>0x700</td><td>0x400</td><td>changed</td></tr>' in seen
    assert '<tr class="new"><td>flags</td><td>-</td><td>CONVERTED</td><td>new</td></tr>' in seen
    # Where something was changed one need not look for it.
    assert '<details open=""><summary>registers' in seen


def test_observed_only_is_said() -> None:
    assert "nothing was changed" in read(sample() | {"mode": "observe"}).text


def test_nothing_in_a_report_gets_out_of_its_place() -> None:
    good, bad = read(sample()), read(hostile())
    names = {name for name, _ in good.elements}
    assert {name for name, _ in bad.elements} <= names
    assert not names & set(FORBIDDEN)
    assert {key for _, attributes in bad.elements for key in attributes} <= {
        key for _, attributes in good.elements for key in attributes
    }
    assert "<script>document.title" in bad.text
    assert not {"\x1b", "\u202e"} & set(bad.text)


def test_nothing_is_loaded() -> None:
    policy = {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"}
    seen = read(sample())
    assert ("meta", policy) in seen.elements
    assert not any(key in ("src", "href") for _, attributes in seen.elements for key in attributes)
    assert "url(" not in page(Told(sample()), SESSION)


@pytest.mark.parametrize("outcome", [one.value for one in Outcome])
def test_every_outcome_has_its_sentence(outcome: str) -> None:
    assert "does not say how this ended" not in read({"outcome": outcome}).text


@pytest.mark.parametrize(
    "report", [{}, {"format": 99}, dict.fromkeys(sample(), 5), {name: [None] for name in sample()}]
)
def test_reports_that_lack_everything(report: dict[str, Any]) -> None:
    assert "does not say how this ended" in read(report).text
