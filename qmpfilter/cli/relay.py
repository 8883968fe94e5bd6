# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter relay``: one migration from a listening address to a destination, without a daemon."""

from __future__ import annotations

import gc

import click

from qmpfilter.cli.interrupt import on_signal
from qmpfilter.cli.output import write_out
from qmpfilter.cli.policy_options import KILL_SWITCH, STATUS, Choices, policy_options
from qmpfilter.filter.gate import Gate
from qmpfilter.relay.address import parse_address, parse_destination
from qmpfilter.relay.relay import Relay
from qmpfilter.relay.report import as_json, as_text

__all__ = ["relay"]


@click.command()
@click.argument("listen", metavar="LISTEN")
@click.argument("connect", metavar="CONNECT")
@policy_options()
def relay(listen: str, connect: str, choices: Choices) -> int:
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
    source, destination = parse_address(listen), parse_destination(connect)
    gate = Gate(choices.policy, KILL_SWITCH.exists)
    listener = source.listen()
    running = Relay(destination.connect, gate, choices.waits)
    # The process ends with the migration: there is no garbage worth a pause while the guest stands still.
    gc.disable()
    with on_signal(running.interrupt):
        outcome = running.run([listener])
    choices.write_report(as_json(running, gate, choices.policy))
    write_out(as_text(running, gate))
    return STATUS[outcome]
