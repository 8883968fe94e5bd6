# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter report`: of one migration, of many, as text, JSON and a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmpfilter.cli.main import EXIT_HOST, main
from tests.report.samples import SESSION, sample

OLDER = "20260228T142530-9f3a01bc"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of two migrations, and of what is none."""
    for name in (SESSION, OLDER):
        (tmp_path / f"{name}.json").write_text(json.dumps(sample() | {"session": name}))
    (tmp_path / "notes.json").write_text("{}")
    return tmp_path


def run(directory: Path, *arguments: str) -> int:
    return main(["report", "--directory", str(directory), *arguments])


@pytest.mark.parametrize("arguments", [[SESSION], []], ids=["by its name", "the newest"])
def test_one(directory: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(directory, *arguments) == 0
    assert capsys.readouterr().out.startswith(f"{SESSION}: completed: the destination runs the guest\n")


def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report").write_text(json.dumps(sample()))
    assert main(["report", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out.startswith("report: completed: ")


def test_json(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(directory, "--json", OLDER) == 0
    assert json.loads(capsys.readouterr().out) == sample() | {"session": OLDER}
    assert run(directory, "--json", "--since", "2026-02-01") == 0
    assert [json.loads(line)["session"] for line in capsys.readouterr().out.splitlines()] == [SESSION, OLDER]


@pytest.mark.parametrize(
    ("since", "count"),
    [
        ("2026-02-28", 2), ("2026-02-28T14:25:30", 2), ("2026-02-28T14:26", 1), ("2026-03-02", 0),
        ("99999d", 2), ("30min", 0),
        ("2026-02-28T23:25:30+09:00", 2), ("2026-02-28T23:26+09:00", 1), ("2026-02-28T13:26-01:00", 1),
    ],
)  # fmt: skip
def test_since(directory: Path, capsys: pytest.CaptureFixture[str], since: str, count: int) -> None:
    assert run(directory, "--since", since) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"migrations: {count}, completed: {count}, " if count else "no migrations")


def test_pages(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, arguments in (("one.html", [SESSION]), ("all.html", ["--since", "2026-01-01"])):
        assert run(directory, "--html", str(tmp_path / name), *arguments) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}\n"
        text = (tmp_path / name).read_text()
        assert text.startswith("<!DOCTYPE html>")
        assert SESSION in text


def test_a_damaged_report_hides_no_other(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / f"{OLDER}.json").write_text("{")
    assert run(directory, "--since", "2026-01-01") == 0
    out, errors = capsys.readouterr()
    assert out.splitlines()[-1].startswith("migrations: 1, ")
    assert errors.startswith(f"qmpfilter: {directory}/{OLDER}.json: a damaged report: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([SESSION.replace("9", "8")], "no report of 20260301T142530-8f3a01bc; if it still runs, 'qmpfilter show "),
        (["nowhere"], "nowhere: neither a session's name nor a file"),
        (["--since", "tomorrow"], "tomorrow: 90min, 36h, 2d, "),
        (["--since", "999999d"], "999999d: 90min, 36h, 2d, "),
        (["--since", "2d", SESSION], "it goes with no SESSION"),
        (["--html", "x", "--json"], "it does not go with --json"),
    ],
)
def test_what_cannot_be_told(
    directory: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(directory, *arguments) == EXIT_HOST
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"outcome', "[" * 100_000], ids=range(5))
def test_a_file_that_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert main(["report", str(tmp_path / "file")]) == EXIT_HOST
    assert "not a report" in capsys.readouterr().err


def test_where_there_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == EXIT_HOST
    assert "no migration has ended yet" in capsys.readouterr().err
    assert run(tmp_path / "none") == EXIT_HOST
    assert "no reports; --directory names another place" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
