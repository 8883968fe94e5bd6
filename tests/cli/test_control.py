# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person is told of a daemon."""

from __future__ import annotations

from typing import Any

import pytest

from qmpfilter.cli import control
from qmpfilter.cli.main import main

CLUSTER = {
    "store": "dir:/store", "name": "a", "ring": "canary", "stage": None, "state": None, "away": "no store is there",
    "stale": "", "hosts": 0, "ailing": "", "off": "",
}  # fmt: skip
ANSWER = {
    "version": "1", "pid": 1, "began": "now", "config": [], "state": "/state", "mode": "annex", "verdict": "enforce",
    "max_sessions": 1, "running": 0, "draining": False, "off": False,
}  # fmt: skip


@pytest.mark.parametrize(("age", "said"), [(None, "never heard"), (7.5, "heard 7.5 s ago")])
def test_a_store_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], age: float | None, said: str
) -> None:
    answer: dict[str, Any] = {**ANSWER, "cluster": {**CLUSTER, "age": age}}
    monkeypatch.setattr(control, "ask", lambda *_: answer)
    assert main(["status"]) == 0
    assert f"the store does not answer, {said}: no store is there\n" in capsys.readouterr().out
