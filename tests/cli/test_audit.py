# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``qmpfilter audit`` prints, and with which status it ends."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from qmpfilter.audit.log import AuditLog
from qmpfilter.cli.main import EXIT_FINE, EXIT_HOST, main


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for number in range(3):
        body = {"at": f"2026-01-0{number + 1}T00:00:00+00:00", "session": f"s{number}", "decision": "released"}
        AuditLog(tmp_path / "audit").append(body, 10.0)
    return tmp_path / "audit"


def test_verify(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", "--directory", str(directory)]) == EXIT_FINE
    told, _, digest = capsys.readouterr().out.rstrip("\n").partition("\nlast digest ")
    assert told == ("3 records, from number 1 of 2026-01-01T00:00:00+00:00 to number 3 of 2026-01-03T00:00:00+00:00")
    assert main(["audit", "verify", "--directory", str(directory), "--last", digest]) == EXIT_FINE

    newest = directory / "audit.jsonl"
    newest.write_bytes(b"".join(newest.read_bytes().splitlines(keepends=True)[:2]))
    assert main(["audit", "verify", "--directory", str(directory)]) == EXIT_FINE
    assert main(["audit", "verify", "--directory", str(directory), "--last", digest]) == 1
    assert f"no record has the digest {digest}" in capsys.readouterr().out

    newest.write_bytes(newest.read_bytes().replace(b"s1", b"s9"))
    assert main(["audit", "verify", "--directory", str(directory)]) == 1
    assert f"{newest}:2: the record was changed" in capsys.readouterr().out


def test_export(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "export", "--directory", str(directory), "--since", "2026-01-02"]) == EXIT_FINE
    assert [json.loads(line)["session"] for line in capsys.readouterr().out.splitlines()] == ["s1", "s2"]
    assert main(["audit", "export", "--directory", str(directory), "--format", "csv"]) == EXIT_FINE
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("number,at,session,decision,")
    assert [row.split(",")[2] for row in rows] == ["s0", "s1", "s2"]


def test_corrections(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = {"at": "2026-01-04T00:00:00+00:00", "session": "s2", "decision": "kept", "corrects": 3}
    assert AuditLog(directory).append(body, 10.0) == 4
    assert main(["audit", "verify", "--directory", str(directory)]) == EXIT_FINE
    assert "\n1 of them correct another: that guest was kept after all\n" in capsys.readouterr().out
    assert main(["audit", "export", "--directory", str(directory), "--format", "csv"]) == EXIT_FINE
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["decision"], row["corrects"]) for row in rows[2:]] == [("released", ""), ("kept", "3")]


def test_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("verify", "export"):
        assert main(["audit", command, "--directory", str(tmp_path / "no")]) == EXIT_HOST
    assert "there is no audit log" in capsys.readouterr().err
