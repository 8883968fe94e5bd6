# SPDX-License-Identifier: GPL-2.0-or-later
"""What an interrupted run left in the cache is never taken for a result."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.cache import cached


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QMPFILTER_LAB_CACHE", str(tmp_path))
    return tmp_path


def _make(target: Path) -> None:
    (target / "file").write_text("whole")


def test_made_once(cache: Path) -> None:
    first = cached("key", _make)
    assert first == cache / "key"
    assert cached("key", lambda _: pytest.fail("made again")) == first


def test_failure_leaves_nothing_to_use(cache: Path) -> None:
    def fail(target: Path) -> None:
        (target / "file").write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        cached("key", fail)
    assert not (cache / "key").exists()
    assert (cached("key", _make) / "file").read_text() == "whole"
