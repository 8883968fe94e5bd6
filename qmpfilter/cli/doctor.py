# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter doctor``: what this host is fit for."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from qmpfilter.cli.output import write_out
from qmpfilter.doctor.as_text import render
from qmpfilter.doctor.checks import Level, examine
from qmpfilter.doctor.gather import gather
from qmpfilter.errors import HostError

__all__ = ["doctor"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the facts that a verdict reads, and nothing else.")
@click.option(
    "--qemu",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="PROGRAM",
    help="A QEMU beside those in the usual places, and before them; can be given more than once.",
)
def doctor(as_json: bool, qemu: tuple[Path, ...]) -> None:
    """Check whether this host can run, send and take guests that run guests.

    One line per check: PASS, WARN (something is lost, or not known) or FAIL (this host is not fit), with what to do.
    Nothing is changed. Asks /dev/kvm, so run it as a user who may open that, and each QEMU for its version.

    --json prints this host's facts as JSON, for a verdict about streams that come here, however fit it is.

    Exit status: 0 no check failed, or --json; 2 a bug of qmpfilter; 3 a check failed, or wrong usage.
    """
    survey = gather(qemu=[path.absolute() for path in qemu])
    if as_json:
        write_out(json.dumps(survey.facts.to_json(), indent=1) + "\n")
        return
    answers = examine(survey)
    terminal = sys.stdout is not None and sys.stdout.isatty()
    write_out(render(answers, colour=terminal and "NO_COLOR" not in os.environ))
    failed = sum(answer.level is Level.FAIL for answer in answers)
    if failed:
        raise HostError(f"{failed} check{'s' if failed > 1 else ''} failed")
