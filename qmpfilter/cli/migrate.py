# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter migrate``: has libvirt migrate a domain, or a QEMU over QMP, through a relay of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from qmpfilter.cli.libvirt_options import connect_option, virsh_options
from qmpfilter.cli.migrate_domain import Request, migrate_domain
from qmpfilter.cli.migrate_qmp import migrate_qmp
from qmpfilter.cli.pair_options import pair_options
from qmpfilter.cli.policy_options import Choices, policy_options
from qmpfilter.libvirt.migration import Late, Pace
from qmpfilter.libvirt.route import PORTS, RELAY_HOST
from qmpfilter.relay.pair import Pairing

__all__ = ["migrate"]

_PACE: Final = ("timeout", "timeout_suspend", "timeout_postcopy", "postcopy_after_precopy")


def _onward(given: Mapping[str, Any]) -> str:
    """Where the relay goes on to, as far as it was said."""
    if given["qmp"] is None:
        return given["onward"] or ""
    return "".join(given["ends"][-1:])


@click.command()
@click.argument("ends", nargs=-1, metavar="DOMAIN DESTURI")
@connect_option
@click.option("--qmp", metavar="SOCKET", help="Without libvirt: the QMP socket of the source.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--relay-at",
    metavar="ADDRESS",
    help=f"Where the relay waits for the source: tcp:HOST:PORT or unix:PATH; by default a port of {RELAY_HOST}.",
)
@click.option(
    "--migrateuri",
    "--onward",
    "onward",
    metavar="URI",
    help="Where the relay finds the destination: tcp://HOST[:PORT] or unix:///PATH; by default DESTURI's host, and "
    f"the relay's port, of {PORTS[0]} to {PORTS[-1]}. With pair: before it another filter is there.",
)
@virsh_options
@click.option("--timeout", type=click.IntRange(min=1), metavar="SECONDS", help="Suspend a guest that takes longer.")
@click.option("--timeout-suspend", is_flag=True, help="What --timeout does by default.")
@click.option("--timeout-postcopy", is_flag=True, help="Go on as postcopy then, instead.")
@click.option("--postcopy-after-precopy", is_flag=True, help="Go on as postcopy when memory was gone through once.")
@click.option(
    "--read-vmcb12",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Read VMCB12 from the stopped source's memory where the stream leaves something to be guessed.",
)
@pair_options
@policy_options(onward=_onward)
def migrate(
    ends: tuple[str, ...],
    qmp: str | None,
    read_vmcb12: str,
    choices: Choices,
    pairing: Pairing,
    **virsh: Any,
) -> int:
    """Migrate a guest through qmpfilter: with DOMAIN DESTURI a domain of libvirt; with --qmp SOCKET and TARGET, in
    their place, the guest of a QEMU.

    DOMAIN is a name, a UUID or a number, DESTURI the libvirt that it goes to. libvirt migrates it as 'virsh migrate'
    does, with the same options; besides it is told to send the stream to a relay of this command, which runs beside
    the source. Encrypted and tunnelled streams are refused, because they cannot be read. Options go before what the
    domain's metadata ask for ('qmpfilter policy'). --dry-run, and VMCB12 where it is read, ask QEMU's monitor, of
    which libvirt keeps a note (a taint).

    TARGET is where a destination waits: unix:PATH or tcp:HOST:PORT, with pair: before it if another filter is there,
    or qmp:PATH, the QMP socket of a QEMU on this host that was started with -incoming defer. It is given the
    source's capabilities, and asked in the end who runs the guest. The source's migration capabilities events and
    return-path are turned on (with --allow-no-return-path only events), and set back if the guest stays. Everything
    else is left as it is: what cannot be filtered is refused before anything is changed. A QMP socket serves one
    client at a time.

    The modes are those of 'qmpfilter relay'. A signal cancels the migration before the destination may start the
    guest, and changes nothing after that. --dry-run says what is known before there is a stream; the guest runs on.

    Exit status: 0 the destination runs the guest; 4 vetoed and 6 refused, failed, stopped or cancelled: the guest
    stays at the source; 5 in doubt, or it runs at both ends or at none; 2 a bug of qmpfilter; 3 wrong usage, settings
    that forbid it, or a problem of this host: nothing was begun.
    """
    read_memory = read_vmcb12 == "auto"
    if qmp is not None:
        _check_unused(virsh)
        if len(ends) != 1:
            raise click.UsageError("--qmp SOCKET takes TARGET, and nothing else")
        return migrate_qmp(qmp, ends[0], read_memory, choices, pairing)
    if len(ends) != 2:
        raise click.UsageError("DOMAIN and DESTURI are needed, or --qmp SOCKET and TARGET")
    domain, desturi = ends
    request = Request(
        domain,
        desturi,
        connect=virsh.pop("connect"),
        relay_at=virsh.pop("relay_at"),
        onward=virsh.pop("onward"),
        dry_run=virsh.pop("dry_run"),
        pace=_pace(**{name: virsh.pop(name) for name in _PACE}),
        read_memory=read_memory,
        pairing=pairing,
        given=virsh,
    )
    return migrate_domain(request, choices)


def _pace(
    timeout: int | None, timeout_suspend: bool, timeout_postcopy: bool, postcopy_after_precopy: bool
) -> Pace:  # fmt: skip
    if timeout_suspend and timeout_postcopy:
        raise click.UsageError("--timeout-suspend and --timeout-postcopy exclude each other")
    if (timeout_suspend or timeout_postcopy) and timeout is None:
        raise click.UsageError("--timeout SECONDS is missing")
    return Pace(timeout, Late.POSTCOPY if timeout_postcopy else Late.SUSPEND, postcopy_after_precopy)


def _check_unused(virsh: dict[str, Any]) -> None:
    """What only libvirt could heed would be lost without a word."""
    for parameter in click.get_current_context().command.params:
        if virsh.get(parameter.name or ""):
            raise click.UsageError(f"{parameter.opts[0]} is for a domain of libvirt, and --qmp is given")
