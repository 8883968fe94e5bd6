# SPDX-License-Identifier: GPL-2.0-or-later
"""Many processes append, hosts go down, files fill up: the log stays one chain."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from qmpfilter.audit.log import AuditLog
from qmpfilter.errors import DeadlineError, HostError

SECONDS = 10.0


def numbers(log: AuditLog) -> list[int]:
    entries = list(log.entries())
    assert [entry.fault for entry in entries] == [None] * len(entries)
    return [entry.record["number"] for entry in entries if entry.record is not None]


def test_records_in_their_order(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    assert numbers(log) == []
    for number in range(3):
        AuditLog(tmp_path / "audit").append({"session": f"s{number}"}, SECONDS)
    assert numbers(log) == [1, 2, 3]
    newest = tmp_path / "audit" / "audit.jsonl"
    assert stat.S_IMODE(newest.stat().st_mode) == 0o600
    assert stat.S_IMODE(newest.parent.stat().st_mode) == 0o700


def test_many_at_once(tmp_path: Path) -> None:
    def write() -> None:
        for _ in range(10):
            AuditLog(tmp_path).append({"thread": threading.get_ident()}, SECONDS)

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert numbers(AuditLog(tmp_path)) == list(range(1, 61))


def test_full_files_make_room(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, most=1000)
    for number in range(20):
        log.append({"session": f"s{number}"}, SECONDS)
    files = sorted(path.name for path in tmp_path.glob("audit*"))
    assert len(files) > 3
    assert all(path.stat().st_size <= 1000 for path in tmp_path.glob("audit*"))
    assert numbers(log) == list(range(1, 21))
    # Old files may be removed.
    oldest = min((path for path in tmp_path.glob("audit-*")), key=lambda path: int(path.stem.partition("-")[2]))
    gone = int(oldest.stem.partition("-")[2])
    oldest.unlink()
    assert numbers(log) == list(range(gone + 1, 21))


def test_a_host_that_went_down(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    for number in range(2):
        log.append({"session": f"s{number}"}, SECONDS)
    newest = tmp_path / "audit.jsonl"
    with newest.open("ab") as file:
        file.write(b'{"at":"20')
    (*_, last) = log.entries()
    assert last.fault is not None
    assert last.fault.cut
    log.append({"session": "after"}, SECONDS)
    assert numbers(log) == [1, 2, 3]


def test_between_two_files(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append({}, SECONDS)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit-1.jsonl")
    assert numbers(log) == [1]
    log.append({}, SECONDS)
    assert numbers(log) == [1, 2]


def test_somebody_who_does_not_let_go(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append({}, SECONDS)
    with (tmp_path / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DeadlineError, match=r"longer than 0\.05 s"):
            log.append({}, 0.05)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"Not a directory|File exists"):
        AuditLog(tmp_path / "file").append({}, SECONDS)


def test_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    AuditLog(tmp_path).append({}, SECONDS)
    assert synced == [str(tmp_path / "audit.jsonl"), str(tmp_path)]
    AuditLog(tmp_path).append({}, SECONDS)
    assert synced[2:] == [str(tmp_path / "audit.jsonl")]
