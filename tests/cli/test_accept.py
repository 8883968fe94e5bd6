# SPDX-License-Identifier: GPL-2.0-or-later
"""`--accept` takes the codes of losses and no others, wherever it is given."""

from __future__ import annotations

import pytest

from qmpfilter.cli.main import EXIT_FINE, EXIT_HOST, main
from qmpfilter.filter.policy import LOST_ANYWAY
from qmpfilter.verdict.losses import LOSS_CODES

COMMANDS = {
    "relay": ("unix:/a", "unix:/b"),
    "pipe": ("unix:/a",),
    "migrate": ("guest", "qemu+ssh://b/system"),
    "start": ("unix:/a", "unix:/b"),
    "policy": ("guest", "set"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_code_of_no_loss_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *COMMANDS[command], "--accept", "l1-cet", "--accept", "nosuch"]) == EXIT_HOST
    said = capsys.readouterr().err
    assert "nosuch: the losses are cet-missing, " in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == EXIT_FINE
    text = "".join(capsys.readouterr().out.split())
    assert f"{','.join(sorted(LOSS_CODES - LOST_ANYWAY))}.Maybegivenagain." in text


def test_what_every_migration_loses_are_losses() -> None:
    assert LOST_ANYWAY < LOSS_CODES
