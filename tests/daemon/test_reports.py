# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports on the disk: written whole, read with care, pruned."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from qmpfilter.daemon.config import Keep
from qmpfilter.daemon.reports import Reports, is_name, new_name
from qmpfilter.errors import HostError

NAMES = [f"2026010{day}T000000-0000000{day}" for day in range(1, 6)]


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(tmp_path / "state" / "sessions")


def test_names() -> None:
    names = [new_name() for _ in range(100)]
    assert len({*names}) == 100
    assert all(map(is_name, names))
    assert not any(map(is_name, ("", "../../etc/passwd", f"{names[0]}/", f"{names[0]}\n", names[0].upper() + "X")))


def test_written_and_read(reports: Reports) -> None:
    reports.write(NAMES[0], {"session": NAMES[0], "outcome": "completed"})
    assert reports.read(NAMES[0]) == {"session": NAMES[0], "outcome": "completed"}
    assert reports.read(NAMES[1]) is None
    assert stat.S_IMODE(reports.path(NAMES[0]).stat().st_mode) == 0o600
    assert stat.S_IMODE(reports.path(NAMES[0]).parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"session": "another"}', "\udcff", "[" * 100_000])
def test_damaged(reports: Reports, text: str) -> None:
    reports.path(NAMES[0]).write_text(text, errors="surrogateescape")
    with pytest.raises(HostError, match=f"{NAMES[0]}.json: "):
        reports.read(NAMES[0])


def test_pruned_by_number_and_by_age(reports: Reports) -> None:
    for name in NAMES:
        reports.write(name, {"session": name})
    stranger = reports.path("notes")
    stranger.write_text("not ours")
    old = time.time() - 86400 * 2
    os.utime(reports.path(NAMES[3]), (old, old))
    reports.prune(Keep(days=3, count=4))
    assert reports.names() == NAMES[:0:-1]
    reports.prune(Keep(days=1, count=4))
    assert reports.names() == [NAMES[4], NAMES[2], NAMES[1]]
    reports.prune(Keep(days=1, count=0))
    assert reports.names() == []
    assert stranger.exists()


def test_what_a_killed_writer_left_goes_in_time(reports: Reports) -> None:
    directory = reports.path(NAMES[0]).parent
    left, fresh = directory / f".{NAMES[0]}.json.abc.part", directory / f".{NAMES[1]}.json.abc.part"
    for path in (left, fresh):
        path.write_text("{")
    old = time.time() - 86400 * 2
    os.utime(left, (old, old))
    reports.prune(Keep())
    assert not left.exists()
    assert fresh.exists()


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="file/sessions: Not a directory"):
        Reports(tmp_path / "file" / "sessions")
