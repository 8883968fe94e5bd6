# SPDX-License-Identifier: GPL-2.0-or-later
"""One migration, or many, in a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from qmpfilter.report.summary import TITLES, Summary, summary_page
from qmpfilter.report.text import report_text, summary_text
from qmpfilter.report.told import Told
from tests.report.samples import SESSION, hostile, sample

WIDTH = 80
VETOED = sample() | {"outcome": "vetoed", "reason": "vCPU 0: a reason", "seconds": {"total": 2.0, "tail": 0.5}}


def test_one() -> None:
    lines = report_text(Told(sample()), SESSION, WIDTH).splitlines()
    assert lines[0] == f"{SESSION}: completed: the destination runs the guest"
    for line in (
        "  guest: a guest", "  1 of 1 vCPUs edited", "timeline", "channels",
        "  vCPU 0: converted, its state came as legacy", "    svm2 vmcb12 save: 70 new fields",
        "  who has the guest: destination", "svm2 records, as files",
        f"  /var/lib/qmpfilter/records/{SESSION}/vcpu3.svm2",
    ):  # fmt: skip
        assert line in lines


def test_what_was_changed_is_told_up_to_a_number() -> None:
    report = sample()
    names = list(report["states"][0]["before"]["registers"])[:30]
    report["states"][0]["after"] = {"registers": dict.fromkeys(names, "0x5")}
    text = report_text(Told(report), SESSION, WIDTH)
    assert f"    registers {names[0]}: {report['states'][0]['before']['registers'][names[0]]} -> 0x5\n" in text
    assert "    and 10 more changes, which --html shows\n" in text


def test_nothing_in_a_report_is_obeyed() -> None:
    text = report_text(Told(hostile()), SESSION, WIDTH) + summary_text(Summary([(SESSION, hostile())]), WIDTH)
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("report", [{}, dict.fromkeys(sample(), 5), {name: [None] for name in sample()}])
def test_reports_that_lack_everything(report: dict[str, Any]) -> None:
    assert report_text(Told(report), SESSION, WIDTH).startswith(f"{SESSION}: ")
    assert SESSION in summary_text(Summary([(SESSION, report)]), WIDTH)


def test_many() -> None:
    text = summary_text(Summary([(SESSION, sample()), ("20260301T142600-9f3a01bd", VETOED)]), WIDTH)
    head, first, second, reason, _, figures = text.splitlines()
    assert head.split() == ["session", "outcome", "mode", "guest", "took", "held", "edited"]
    assert first.startswith(f"{SESSION}  completed")
    assert second.split()[1] == "vetoed"
    assert reason == "    vCPU 0: a reason"
    assert figures.startswith(
        "migrations: 2, completed: 1, vetoed: 1, vCPUs edited: 2, longest hold, 20260301T142600-"
    )
    assert max(map(len, (head, first, second))) <= WIDTH


def test_none() -> None:
    assert summary_text(Summary([]), WIDTH) == "no migrations\n"
    assert "There are none." in summary_page(Summary([]), "Migrations")


def test_many_as_a_page() -> None:
    text = summary_page(Summary([(SESSION, hostile()), (SESSION, VETOED)]), "Migrations")
    assert "<script>" not in text
    assert all(f">{title}</th>" in text for title in TITLES)
    assert "vCPU 0: a reason" in text
    assert "stopped before the destination could start the guest" in text
