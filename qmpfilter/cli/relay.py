# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter relay``: one migration from a listening address to a destination, without a daemon."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from operator import itemgetter

import click

from qmpfilter.cli.interrupt import on_signal
from qmpfilter.cli.output import write_out
from qmpfilter.cli.pair_options import pair_options
from qmpfilter.cli.policy_options import STATUS, Choices, policy_options
from qmpfilter.doctor.gather import gather
from qmpfilter.filter.gate import Gate
from qmpfilter.relay.address import (
    OriginalDestination,
    PairAddress,
    listened_at,
    listening,
    parse_destination,
    parse_listening,
)
from qmpfilter.relay.pair import Pair, Pairing, check_certificates
from qmpfilter.relay.report import as_json, as_text
from qmpfilter.relay.session import Phase
from qmpfilter.relay.storage import NO_STORAGE, Storage
from qmpfilter.verdict.facts import HostFacts

__all__ = ["relay"]


@click.command()
@click.argument("listen", metavar="LISTEN")
@click.argument("connect", metavar="CONNECT")
@pair_options
@click.option(
    "--domain", metavar="UUID", default="", help="The guest: one that a pair: address knows as another is refused."
)
@click.option(
    "--disks",
    is_flag=True,
    help='With "original": disks (--copy-storage-*) come before the guest; who is silent for a second is one.',
)
@policy_options(onward=itemgetter("connect"))
def relay(listen: str, connect: str, choices: Choices, pairing: Pairing, domain: str, disks: bool) -> int:
    """Relay one migration: wait for a source at LISTEN, and pass it on to the destination at CONNECT.

    Both are addresses as QEMU writes them: tcp:HOST:PORT or unix:PATH. The source migrates to LISTEN, all its
    channels; the destination waits at CONNECT, with -incoming. CONNECT may be "original": where each connection was
    to go before a rule of nftables redirected it to LISTEN; connections of the relay carry the mark 0x716d.

    "pair:" before either address means that another qmpfilter is there: CONNECT of the source's host and LISTEN of
    the destination's. The one at the destination then tells its host's facts, and between hosts all is TLS 1.3, with
    the certificates that libvirt has on both.

    \b
    off      passes everything on without reading it
    observe  reads, judges, changes nothing
    annex    adds svm2 to the nested state of every vCPU in L2; every kernel takes it
    legacy   takes svm2 out again
    native   sends svm2 alone; only for a peer that announced it

    The guest is never at risk: until the destination may start it, whatever goes wrong leaves it at the source.
    While the file "off" in the configuration's runtime_directory, /run/qmpfilter, exists, everything passes as it is.
    Where the relay waits is told on standard error: with port 0 in LISTEN any free one is taken.

    Exit status: 0 the destination runs the guest; 4 vetoed and 6 refused, failed, stopped or cancelled: the guest
    stays at the source; 5 in doubt: the connection was cut, or another filter ended without the destination's answer,
    when the destination could have started it; 2 a bug of qmpfilter; 3 wrong usage or a problem of this host.
    """
    source, destination = parse_listening(listen), parse_destination(connect)
    storage = NO_STORAGE
    if disks:
        if not isinstance(destination, OriginalDestination):
            raise click.UsageError('--disks is for connections that were redirected: CONNECT has to be "original"')
        storage = Storage(destination.connect, silent=True)
    pairing = replace(pairing, domain=domain)
    check_certificates(source, destination, pairing)
    policy = choices.policy
    if isinstance(source, PairAddress) and policy.facts == HostFacts():
        policy = replace(policy, facts=gather().facts)
    gate = Gate(policy, choices.kill_switch.exists)
    pair = Pair(pairing, choices.waits, gate, choices.kill_switch.exists)
    with listening(source) as listener:
        print(f"qmpfilter: waits at {listened_at(source, listener)}", file=sys.stderr, flush=True)
        running = pair.relay(destination, storage)
        listeners = pair.welcoming(source, [listener], lambda: running.session.phase is Phase.WAITING)
        # The process ends with the migration: there is no garbage worth a pause while the guest stands still.
        gc.disable()
        with on_signal(running.interrupt):
            outcome = running.run(listeners)
    choices.write_report(as_json(running, gate, pair.links))
    write_out(as_text(running, gate, pair.links))
    return STATUS[outcome]
