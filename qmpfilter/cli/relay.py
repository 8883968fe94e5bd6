# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter relay``: one migration from a listening address to a destination, without a daemon."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Final

import click

from qmpfilter.cli.interrupt import on_signal
from qmpfilter.cli.output import write_out
from qmpfilter.filter.gate import Gate
from qmpfilter.filter.policy import LOST_ANYWAY, Enforcement, Mode, Policy
from qmpfilter.relay.address import parse_address, parse_destination
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.relay import Relay
from qmpfilter.relay.report import as_json, as_text
from qmpfilter.relay.session import Outcome
from qmpfilter.verdict.facts import HostFacts

__all__ = ["EXIT_IN_DOUBT", "EXIT_STAYED", "EXIT_VETOED", "relay"]

EXIT_VETOED: Final = 4
EXIT_IN_DOUBT: Final = 5
EXIT_STAYED: Final = 6
_STATUS: Final = {
    Outcome.COMPLETED: 0,
    Outcome.SENT: 0,
    Outcome.VETOED: EXIT_VETOED,
    Outcome.IN_DOUBT: EXIT_IN_DOUBT,
    Outcome.REFUSED: EXIT_STAYED,
    Outcome.FAILED: EXIT_STAYED,
    Outcome.CANCELLED: EXIT_STAYED,
}
_NAMES: Final = tuple(field.name for field in fields(Waits))
KILL_SWITCH: Final = Path("/run/qmpfilter/off")


@click.command()
@click.argument("listen", metavar="LISTEN")
@click.argument("connect", metavar="CONNECT")
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.ANNEX.value,
    show_default=True,
    help="What is done to the stream.",
)
@click.option(
    "--verdict",
    "enforcement",
    type=click.Choice([one.value for one in Enforcement]),
    default=Enforcement.ENFORCE.value,
    show_default=True,
    help="What follows when the destination would refuse the guest's state, or lose some of it.",
)
@click.option(
    "--host",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The destination's facts, as 'qmpfilter doctor --json' printed them there.",
)
@click.option("--accept", multiple=True, metavar="CODE", help="Accept this loss too; may be given again.")
@click.option(
    "--allow-no-return-path", is_flag=True, help="Serve a source that does not wait for the destination's word."
)
@click.option(
    "--deadline",
    "deadlines",
    multiple=True,
    metavar="NAME=SECONDS",
    help="Another deadline than the default: source, connect, hello, idle, tail, linger. May be given again.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write what happened there, as JSON.",
)
def relay(
    listen: str,
    connect: str,
    mode: str,
    enforcement: str,
    host: Path | None,
    accept: tuple[str, ...],
    allow_no_return_path: bool,
    deadlines: tuple[str, ...],
    report: Path | None,
) -> int:  # fmt: skip
    """Relay one migration: wait for a source at LISTEN, and pass it on to the destination at CONNECT.

    Both are addresses as QEMU writes them: tcp:HOST:PORT or unix:PATH. The source migrates to LISTEN, all its
    channels; the destination waits at CONNECT, with -incoming. CONNECT may be "original": where each connection was
    to go before a rule of nftables redirected it to LISTEN; connections of the relay carry the mark 0x716d.

    \b
    off      passes everything on without reading it
    observe  reads, judges, changes nothing
    annex    adds svm2 to the nested state of every vCPU in L2; every kernel takes it
    legacy   takes svm2 out again
    native   sends svm2 alone; only for a peer that announced it

    The guest is never at risk: until the destination may start it, whatever goes wrong leaves it at the source.
    While the file /run/qmpfilter/off exists, everything passes as it is.

    Exit status: 0 the destination runs the guest; 4 vetoed and 6 refused, failed or cancelled: the guest stays at
    the source; 5 in doubt: the connection was cut when the destination could have started it; 2 a bug of qmpfilter;
    3 wrong usage or a problem of this host.
    """
    policy = Policy(
        mode=Mode(mode),
        enforcement=Enforcement(enforcement),
        facts=HostFacts() if host is None else HostFacts.from_json(host.read_text(encoding="utf-8")),
        accepted=LOST_ANYWAY | set(accept),
        without_return_path=allow_no_return_path,
    )
    source, destination = parse_address(listen), parse_destination(connect)
    gate = Gate(policy, KILL_SWITCH.exists)
    waits = _waits(deadlines)
    listener = source.listen()
    running = Relay(destination.connect, gate, waits)
    with on_signal(running.interrupt):
        outcome = running.run([listener])
    if report is not None:
        _write(report, json.dumps(as_json(running, gate, policy), indent=1) + "\n")
    write_out(as_text(running, gate))
    return _STATUS[outcome]


def _waits(deadlines: tuple[str, ...]) -> Waits:
    given = {}
    for text in deadlines:
        name, _, seconds = text.partition("=")
        try:
            given[name] = float(seconds)
        except ValueError:
            raise click.UsageError(f"--deadline {text}: NAME=SECONDS is needed") from None
        if name not in _NAMES or not 0 < given[name] < float("inf"):
            raise click.UsageError(f"--deadline {text}: one of {', '.join(_NAMES)}, with more than 0 seconds")
    return Waits(**given)


def _write(path: Path, text: str) -> None:
    """All of the file or nothing, for its owner alone."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    scratch.replace(path)
