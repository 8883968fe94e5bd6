# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of an error that a command ends with."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from qmpfilter.cli import main as command_line
from qmpfilter.cli.main import EXIT_HOST, main


def test_choices_stand_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "a", "b"]) == EXIT_HOST
    said = capsys.readouterr().err
    assert "Choose from: annex, " in said or "Choose from: legacy, " in said
    assert "\\" not in said


def test_a_directory_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == EXIT_HOST
    assert capsys.readouterr().err == f"qmpfilter: {tmp_path}: Is a directory\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/closed/q.toml"), "/closed/q.toml: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("the name has no address"), "the name has no address"),
    ],
)
def test_an_error_of_the_system_is_a_sentence(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(command_line, "cli", failing)
    assert main([]) == EXIT_HOST
    assert capsys.readouterr().err == f"qmpfilter: {said}\n"
