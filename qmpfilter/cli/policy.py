# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter policy``: what a domain asks for in its own metadata."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Final

import click

from qmpfilter.cli.libvirt_options import connect_option
from qmpfilter.cli.output import write_out
from qmpfilter.cli.policy_options import accept_option
from qmpfilter.filter.policy import Enforcement, Mode
from qmpfilter.libvirt.connection import Connection
from qmpfilter.libvirt.metadata import DomainPolicy

__all__ = ["policy"]

_SHOW, _SET, _CLEAR = "show", "set", "clear"
_ACTIONS: Final = (_SHOW, _SET, _CLEAR)


@click.command()
@click.argument("domain", metavar="DOMAIN")
@click.argument("action", type=click.Choice(_ACTIONS), default=_SHOW, metavar="[ACTION]")
@connect_option
@click.option("--mode", type=click.Choice([mode.value for mode in Mode]), help="set: What is done to its streams.")
@click.option(
    "--verdict",
    type=click.Choice([one.value for one in Enforcement]),
    help="set: What follows when the destination would refuse its state, or lose some of it.",
)
@accept_option("set: ")
@click.option("--json", "as_json", is_flag=True, help="Print what is asked for as JSON, with stable keys.")
def policy(
    domain: str,
    action: str,
    connect: str | None,
    mode: str | None,
    verdict: str | None,
    accept: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show or change what DOMAIN itself asks for of its migrations.

    It stands in the domain's metadata, as it runs and as it is defined, and so goes with every migration. ACTION is
    show, set, which leaves what is not named as it is, or clear, which takes all away. Where nothing is asked for,
    what the command line of the migration or the configuration says holds; options of 'qmpfilter migrate' go before
    what the domain asks for.

    Exit status: 0 shown or changed; 2 a bug of qmpfilter; 3 libvirt says no, or wrong usage.
    """
    asked = bool(mode or verdict or accept)
    if asked is not (action == _SET):
        raise click.UsageError("'set' and at least one of --mode, --verdict and --accept belong together")

    def change(before: DomainPolicy) -> DomainPolicy:
        return DomainPolicy(
            Mode(mode) if mode else before.mode,
            Enforcement(verdict) if verdict else before.enforcement,
            frozenset(accept) or before.accepted,
        )

    name, now = asyncio.run(_work(domain, connect, action, change))
    write_out(f"{json.dumps({'domain': name, **now.to_json()}, indent=1) if as_json else f'{name}: {now}'}\n")


async def _work(
    name: str, uri: str | None, action: str, change: Callable[[DomainPolicy], DomainPolicy]
) -> tuple[str, DomainPolicy]:
    """The domain's name, and its policy afterwards."""
    connection = await Connection.open(uri)
    try:
        domain = await connection.domain(name)
        # What cannot be understood can be taken away all the same.
        policy = DomainPolicy() if action == _CLEAR else await domain.policy()
        if action != _SHOW:
            policy = change(policy) if action == _SET else policy
            await domain.set_policy(policy)
        return domain.name, policy
    finally:
        await connection.close()
