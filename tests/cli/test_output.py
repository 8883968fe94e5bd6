# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables on a narrow terminal."""

from __future__ import annotations

import pytest

from qmpfilter.cli.output import table

ROWS = [
    ("20260301T142530-9f3a01bc", "vetoed", "1,024", "tcp:127.0.0.2:49300", "tcp:destination.example.org:49300"),
    ("b", "completed", "7", "unix:/a b", ""),
]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_nothing_is_shortened_and_what_is_long_stands_below_its_row() -> None:
    reason = "the destination\nwould refuse vCPU 0: " + "a reason " * 20
    text = table(("session", "state", "bytes", "from", "to"), ROWS, ("bytes",), notes=[reason, ""])
    assert text.splitlines() == [
        "session                   state      bytes  from                 to",
        "20260301T142530-9f3a01bc  vetoed     1,024  tcp:127.0.0.2:49300  tcp:destination.example.org:49300",
        f"    {' '.join(reason.split())}",
        "b                         completed      7  unix:/a b",
    ]


def test_a_column_of_sentences_is_wrapped() -> None:
    text = table(("who", "because"), [("ring", "a reason " * 20)], wraps="because")
    lines = text.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
