# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter explain``: how the mode of a migration comes about."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path
from typing import Any, Final

import click

from qmpfilter.cli.control import asking
from qmpfilter.cli.output import print_json, table, write_out
from qmpfilter.daemon.client import ask
from qmpfilter.errors import DeadlineError, HostError
from qmpfilter.filter.policy import Mode

__all__ = ["explain"]

_VIRSH_SECONDS: Final = 10.0


@click.command()
@click.argument("domain", metavar="DOMAIN")
@click.argument("destination", metavar="DESTHOST")
@click.option("--mode", type=click.Choice([one.value for one in Mode]), help="As if this one were asked for.")
@click.option(
    "--domain-mode", type=click.Choice([one.value for one in Mode]), help="As if the domain's policy named this one."
)
@asking
def explain(domain: str, destination: str, path: Path, as_json: bool, **modes: str | None) -> None:
    """Say how a migration of DOMAIN from this host to DESTHOST would be treated, and how that comes about.

    DOMAIN is a uuid or, where virsh can be asked, a name; DESTHOST a name or address of a host of the cluster.
    Everybody who has a say names the most that may be done to the stream; the least of that is done.

    Exit status: 0 it is said; 2 a bug of qmpfilter; 3 there is no such domain, this host is in no cluster, the daemon
    does not answer, or wrong usage.
    """
    given: dict[str, Any] = {name: value for name, value in modes.items() if value is not None}
    answer = ask(path, "explain", domain=_uuid(domain), destination=destination, **given)
    if as_json:
        print_json(answer)
        return
    write_out(f"mode {answer['mode']}: {answer['why']}\n\n")
    write_out(
        table(("who", "allows", "because"), [_row(step, answer["mode"]) for step in answer["steps"]], wraps="because")
    )


def _row(step: dict[str, Any], mode: str) -> tuple[str, str, str]:
    return step["who"], f"{step['most']}{' *' if step['most'] == mode else ''}", step["why"]


def _uuid(domain: str) -> str:
    """:raises HostError: libvirt is not there, or knows no such domain"""
    try:
        return str(uuid.UUID(domain))
    except ValueError:
        pass
    command = ["virsh", "--readonly", "--quiet", "domuuid", f"--domain={domain}"]
    try:
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_VIRSH_SECONDS, check=False
        )
    except FileNotFoundError:
        raise HostError(f"{domain}: not a uuid, and there is no virsh that knows names: give the uuid") from None
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"{domain}: virsh did not answer within {_VIRSH_SECONDS:g} s: give the uuid") from None
    if said.returncode:
        raise HostError(f"{domain}: {' '.join(said.stderr.split()) or 'virsh does not know it'}")
    return said.stdout.strip()
