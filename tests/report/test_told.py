# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports are read with care: of any version, and whatever stands in them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from qmpfilter.report.told import Told

REPORT = Told(
    {"seconds": {"tail": 0.5}, "list": [{"a": 1}, 2], "at": "2026-03-01T14:25:30.125+00:00", "text": "a\x1b[2Jb"}
)


def test_what_is_told() -> None:
    assert REPORT.number("seconds", "tail") == 0.5
    assert [one.text("a") for one in REPORT.each("list")] == ["1", ""]
    assert REPORT.moment("at") == datetime(2026, 3, 1, 14, 25, 30, 125000, UTC)
    assert [name for name, _ in REPORT.items("seconds")] == ["tail"]


def test_nothing_in_a_text_is_obeyed() -> None:
    assert REPORT.text("text") == "a\\x1b[2Jb"


@pytest.mark.parametrize("value", [None, 1, "text", [], {}, True, {"x": {"x": []}}, [None]])
def test_what_is_not_there_or_something_else_is_not_told(value: Any) -> None:
    told = Told(value)
    assert (told.text("x", "y"), told.number("x"), told.moment("x")) == ("", None, None)
    assert (told.each("x"), told.items("x", "y"), bool(told.part("x", "y"))) == ([], [], False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, True, "5"])
def test_what_is_no_number(value: Any) -> None:
    assert Told(value).number() is None


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", 5])
def test_what_is_no_moment(text: Any) -> None:
    assert Told(text).moment() is None
