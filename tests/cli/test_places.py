# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the configuration puts the daemon's directories, commands look for what is in them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from qmpfilter.cli.main import EXIT_FINE, EXIT_HOST, main
from qmpfilter.cli.policy_options import Choices, policy_options
from qmpfilter.daemon import config


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with those of the daemon's."""
    file = tmp_path / "q.toml"
    file.write_text(f'runtime_directory = "{tmp_path}/run"\nstate_directory = "{tmp_path}/state"\n')
    monkeypatch.setattr(config, "DEFAULT", file)
    return tmp_path


def test_a_migration_heeds_the_kill_switch_there(configured: Path) -> None:
    seen: list[Path] = []

    @click.command()
    @policy_options()
    def migrating(choices: Choices) -> int:
        seen.append(choices.kill_switch)
        return 0

    migrating.main([], standalone_mode=False)
    assert seen == [configured / "run" / "off"]


def test_the_kill_switch_is_made_there(configured: Path) -> None:
    assert main(["off"]) == EXIT_FINE
    assert (configured / "run" / "off").exists()
    assert main(["on"]) == EXIT_FINE
    assert not (configured / "run" / "off").exists()


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (("status",), "run/control.sock"),
        (("report",), "state/sessions"),
        (("audit", "verify"), "state/audit"),
        (("audit", "export"), "state/audit"),
    ],
)
def test_defaults_are_there(
    configured: Path, arguments: tuple[str, ...], place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == EXIT_HOST
    assert str(configured / place) in capsys.readouterr().err


@pytest.mark.parametrize("command", ["relay", "off"])
def test_a_configuration_that_is_no_toml_is_told(
    configured: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (configured / "q.toml").write_text("runtime_directory =")
    assert main([command, *(("unix:/nowhere/a", "unix:/b") if command == "relay" else ())]) == EXIT_HOST
    assert f"{configured / 'q.toml'}: no TOML" in capsys.readouterr().err
