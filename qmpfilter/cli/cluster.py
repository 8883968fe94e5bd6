# SPDX-License-Identifier: GPL-2.0-or-later
"""How commands get at the cluster's records, and ``qmpfilter hosts``: who is there."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from qmpfilter.cli.output import print_json, table, write_out
from qmpfilter.cluster.address import open_store
from qmpfilter.cluster.board import Board
from qmpfilter.cluster.host import HostRecord, Seen
from qmpfilter.daemon.config import DEFAULT, load
from qmpfilter.errors import HostError

__all__ = ["board", "configured", "hosts", "operator"]

_UNITS: Final = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))

configured = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"The daemon's configuration, whose [cluster] tells where the store is. [default: {DEFAULT}]",
)


@contextmanager
def board(config: Path | None) -> Iterator[Board]:
    """The cluster's records.

    :param config: the configuration that tells where they are; None for the default one
    :raises HostError: it is wrong, or names no store
    """
    cluster = load(config).cluster
    if not cluster.wanted:
        raise HostError(f"{config or DEFAULT}: [cluster] names no store: this host is on its own")
    store = open_store(cluster.store, cluster.access)
    try:
        yield Board(store)
    finally:
        store.close()


def operator() -> str:
    """Who calls, for the history."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


@click.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="Print all that the hosts say of themselves as JSON.")
def hosts(config: Path | None, as_json: bool) -> None:
    """List the hosts of the cluster: what each accepts, whether it is well, and how long ago it looked.

    A host is listed for as long as its daemon gives signs of life. Of one that is not well the next line says why.

    Exit status: 0 they are listed; 2 a bug of qmpfilter; 3 the store does not answer, or wrong usage.
    """
    with board(config) as records:
        listed, seen = records.hosts(), records.seen()
    if as_json:
        rows = {name: _as_json(host, seen.get(name, Seen())) for name, host in listed.good.items()}
        print_json({"hosts": rows, "damaged": list(listed.damaged)})
        return
    titles = ("host", "ring", "kernel", "QEMU", "libvirt", "qmpfilter", "formats", "looked")
    cells = [_row(host) for host in listed.good.values()]
    notes = [host.ailing and f"not well: {host.ailing}" for host in listed.good.values()]
    write_out(table(titles, cells, notes=notes) if cells else "no host is listed\n")
    write_out("".join(f"{sentence}\n" for sentence in listed.damaged))


def _as_json(host: HostRecord, seen: Seen) -> dict[str, Any]:
    return {
        "off": seen.off,
        "serial": seen.serial,
        "ring": host.ring,
        "labels": list(host.labels),
        "addresses": list(host.addresses),
        "qmpfilter": host.qmpfilter,
        "libvirt": host.libvirt,
        "facts": host.facts.to_json(),
        "ailing": host.ailing,
        "when": host.when,
    }


def _row(host: HostRecord) -> tuple[str, ...]:
    facts = host.facts
    return (
        host.name,
        host.ring,
        facts.kernel_release or "not known",
        "not known" if facts.qemu_version is None else str(facts.qemu_version),
        host.libvirt or "none",
        host.qmpfilter,
        ", ".join(facts.formats) or "not known",
        _age(host.when),
    )


def _age(when: str) -> str:
    """How long ago a host's clock had this time, by the clock here."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()
    except (ValueError, TypeError):
        return "at no time"
    if seconds < 0:
        return "just now" if seconds > -60 else "ahead of this clock"
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), _UNITS[-1])
    return f"{seconds // size:.0f} {unit} ago"
