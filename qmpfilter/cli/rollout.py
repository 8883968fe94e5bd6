# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter rollout``: from nothing to native svm2, ring by ring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qmpfilter.cli.cluster import board, configured, operator
from qmpfilter.cli.output import print_json, table, write_out
from qmpfilter.cluster import changes
from qmpfilter.cluster.board import Board, signed
from qmpfilter.cluster.changes import By, Settings
from qmpfilter.cluster.counts import Sum
from qmpfilter.cluster.plan import plan as planned
from qmpfilter.cluster.plan import without_ring
from qmpfilter.cluster.rollout import STAGES, Canaries, Rollout, domain_uuid
from qmpfilter.cluster.told import moves_as_json, rings_as_json, rollout_as_json
from qmpfilter.errors import PolicyError
from qmpfilter.filter.policy import Mode

__all__ = ["rollout"]

_SHOWN_HISTORY = 5


@click.group()
def rollout() -> None:
    """Bring the hosts of a cluster from nothing to native svm2, ring by ring.

    Each ring goes from off to observe (streams are read and judged), annex (svm2 is added to the legacy state) and
    native (svm2 alone, between hosts that announce it). A ring goes on only after enough migrations without veto or
    failure, and not before the rings before it. One failure too many pauses it: nothing is edited there until
    somebody resumes it.
    """


def _common(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")(command)
    return configured(command)


_rings_option = click.option("--ring", "rings", multiple=True, help="This ring; may be given again. [default: all]")
_why = click.option("--why", default="", help="A reason, for the others who run this cluster.")


@rollout.command()
@_common
def status(config: Path | None, as_json: bool) -> None:
    """Say how far each ring is, and what stands against its next stage.

    Exit status: 0 it is said; 2 a bug of qmpfilter; 3 the store does not answer, or wrong usage.
    """
    with board(config) as records:
        _tell(records, records.rollout(), as_json)


@rollout.command()
@click.option(
    "--rings", metavar="RING,...", help="As if a rollout with these rings began. [default: the one there is]"
)
@_common
def plan(config: Path | None, as_json: bool, rings: str | None) -> None:
    """Simulate a rollout over the hosts that are listed: nothing is changed.

    For every promotion to come: how many ordered pairs of hosts would get which mode, how many migrations the ring
    has to see before the next, and which pairs are held back, and why.

    Exit status: 0 it is printed; 2 a bug of qmpfilter; 3 the store does not answer, or wrong usage.
    """
    with board(config) as records:
        current, listed = records.rollout(), records.hosts()
    if rings is not None:
        current = changes.start(None, _names(rings), {}, signed(operator()))
    if current is None:
        raise PolicyError("no rollout has begun: say with which rings, as in --rings canary,main")
    moves = moves_as_json(planned(current, listed.good.values()))
    outside = without_ring(current, listed.good.values())
    if as_json:
        print_json({"moves": moves, "outside": outside, "damaged": list(listed.damaged)})
        return
    for move in moves:
        pairs = ", ".join(f"{count} {mode}" for mode, count in move["pairs"].items()) or "none"
        write_out(f"ring {move['ring']} to {move['stage']}: pairs of hosts: {pairs}\n")
        for held in move["held"]:
            source, destination = held["example"]
            write_out(
                f"  held at {held['mode']}: {held['pairs']}, as {source} to {destination}, because {held['why']}\n"
            )
        if move["needed"]:
            write_out(f"  before its next stage: {move['needed']} migrations\n")
    if outside:
        write_out(f"in rings that the rollout does not have: {', '.join(outside)}\n")
    write_out("".join(f"{sentence}\n" for sentence in listed.damaged))


@rollout.command()
@click.option("--rings", metavar="RING,...", required=True, help="All rings, in the order in which they are to go.")
@_common
def start(config: Path | None, as_json: bool, rings: str) -> None:
    """Begin a rollout: the first ring observes, the others are off.

    Exit status: 0 it has begun; 2 a bug of qmpfilter; 3 there is one already, the store does not answer, or wrong
    usage.
    """
    _change(
        config, as_json, lambda current, counts, by: changes.start(current, _names(rings), counts.whole, by), may=True
    )


@rollout.command()
@click.argument("ring")
@click.option(
    "--percent", type=click.IntRange(0, 100), default=100, show_default=True, help="Of the domains, at first."
)
@click.option("--label", "labels", multiple=True, help="And the hosts that carry this label; may be given again.")
@_common
def promote(config: Path | None, as_json: bool, ring: str, percent: int, labels: tuple[str, ...]) -> None:
    """Take RING to its next stage, if it saw enough migrations without veto or failure.

    With --percent or --label only canaries get it: these parts of the domains, by a hash of their uuid, and these
    hosts. 'qmpfilter rollout set' then gives it to more.

    Exit status: 0 it is there; 2 a bug of qmpfilter; 3 something stands against it, the store does not answer, or
    wrong usage.
    """
    canaries = Canaries(percent, labels)
    _change(config, as_json, lambda current, counts, by: changes.promote(current, ring, counts.whole, by, canaries))


@rollout.command()
@_rings_option
@_why
@_common
def pause(config: Path | None, as_json: bool, rings: tuple[str, ...], why: str) -> None:
    """Edit nothing any more, until it is resumed; the stages stay.

    Exit status: 0 done; 2 a bug of qmpfilter; 3 none of the rings runs, the store does not answer, or wrong usage.
    """
    _change(config, as_json, lambda current, _, by: changes.pause(current, rings, why, by))


@rollout.command()
@_rings_option
@_common
def resume(config: Path | None, as_json: bool, rings: tuple[str, ...]) -> None:
    """Go on with what is paused or aborted, and count anew.

    What was paused goes on at its stage, what was aborted at observe.

    Exit status: 0 done; 2 a bug of qmpfilter; 3 all of the rings run, the store does not answer, or wrong usage.
    """
    _change(config, as_json, lambda current, counts, by: changes.resume(current, rings, counts.whole, by))


@rollout.command()
@_rings_option
@_why
@_common
def abort(config: Path | None, as_json: bool, rings: tuple[str, ...], why: str) -> None:
    """Let everything pass unread; what is resumed later begins at observe again.

    Exit status: 0 done; 2 a bug of qmpfilter; 3 all of the rings are aborted, the store does not answer, or wrong
    usage.
    """
    _change(config, as_json, lambda current, _, by: changes.abort(current, rings, why, by))


@rollout.command("set")
@click.option("--least-migrations", type=click.IntRange(0), help="That a ring has to see before its next stage.")
@click.option("--most-failures", type=click.IntRange(0), help="That do not pause a ring.")
@click.option("--most-vetoes", type=click.IntRange(0), help="That do not pause a ring.")
@click.option("--ring", help="The ring that the canaries are of.")
@click.option("--percent", type=click.IntRange(0, 100), help="Of the domains that have the ring's stage already.")
@click.option("--label", "labels", multiple=True, help="Of hosts that have it already; replaces those there are.")
@click.option("--no-labels", is_flag=True, help="No host has it for its label.")
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME=STAGE", help="The most for a host; '=' alone ends that."
)
@click.option("--domain", "domains", multiple=True, metavar="UUID=STAGE", help="The same for a domain.")
@_common
def set_(config: Path | None, as_json: bool, no_labels: bool, **given: Any) -> None:
    """Set thresholds, canaries and overrides.

    An override only takes away: a host or a domain gets no more than this, whatever its ring has.

    Exit status: 0 done; 2 a bug of qmpfilter; 3 there is no rollout, the store does not answer, or wrong usage.
    """
    labels = given.pop("labels")
    settings = Settings(
        labels=() if no_labels else labels or None,
        hosts=dict(_override(one) for one in given.pop("hosts")),
        domains={domain_uuid(name): stage for name, stage in map(_override, given.pop("domains"))},
        **given,
    )
    _change(config, as_json, lambda current, _, by: changes.set_values(current, settings, by))


def _override(text: str) -> tuple[str, Mode | None]:
    """:raises UsageError: it is none"""
    name, equals, stage = text.partition("=")
    stages = [one.value for one in STAGES]
    if not name or not equals or (stage and stage not in stages):
        raise click.UsageError(f"{text!r}: expected NAME=STAGE with a stage of {', '.join(stages)}, or NAME=")
    return name, Mode(stage) if stage else None


def _names(rings: str) -> list[str]:
    return [name.strip() for name in rings.split(",")]


def _change(config: Path | None, as_json: bool, how: Callable[[Any, Sum, By], Rollout], *, may: bool = False) -> None:
    """Change the rollout, and tell how it is then.

    :param may: it is fine if there is none yet
    """

    def changed(current: Rollout | None, counts: Sum) -> Rollout:
        if current is None and not may:
            raise PolicyError("no rollout has begun: 'qmpfilter rollout start' begins one")
        return how(current, counts, signed(operator()))

    with board(config) as records:
        _tell(records, records.change(changed), as_json)


def _tell(records: Board, current: Rollout | None, as_json: bool) -> None:
    counts, switch, listed = records.counts(), records.switch(), records.hosts()
    if as_json:
        print_json(rollout_as_json(current, counts, switch, listed.good))
        return
    if switch is not None:
        write_out(f"everything passes as it is: all hosts were switched off by {switch.by} ({switch.at})\n")
    if current is None:
        write_out("no rollout has begun\n")
        return
    rings = rings_as_json(current, counts, listed.good.values())
    titles = ("ring", "stage", "state", "hosts", "canaries", "migrations", "vetoed", "failed", "in doubt", "next")
    numbers = ("hosts", "migrations", "vetoed", "failed", "in doubt")
    write_out(table(titles, [_row(ring) for ring in rings], numbers))
    for ring in rings:
        if not ring["hosts"]:
            write_out(f"no host is in {ring['ring']}\n")
        if ring["why"]:
            write_out(f"{ring['ring']} is {ring['state']}: {ring['why']}\n")
        for against in ring["obstacles"]:
            write_out(f"{ring['ring']} stays at {ring['stage']}: {against}\n")
    for kind, held in (("host", current.hosts), ("domain", current.domains)):
        write_out("".join(f"{kind} {name} gets at most {stage}\n" for name, stage in sorted(held.items())))
    limits = current.thresholds
    write_out(
        f"a ring goes on after {limits.least_migrations} migrations, and is paused by more than "
        f"{limits.most_failures} failures or {limits.most_vetoes} vetoes\n"
    )
    for change in current.history[-_SHOWN_HISTORY:]:
        write_out(f"  {change.at} {change.by}: {change.what}\n")


def _row(ring: dict[str, Any]) -> tuple[str, ...]:
    canaries = ring["canaries"]
    everyone = canaries["percent"] >= 100
    return (
        ring["ring"],
        ring["stage"],
        ring["state"],
        str(ring["hosts"]),
        "everyone" if everyone else ", ".join([f"{canaries['percent']}%", *canaries["labels"]]),
        f"{ring['migrations']}/{ring['needed']}",
        str(ring["vetoed"]),
        str(ring["failed"]),
        str(ring["in_doubt"]),
        ring["next"] or "",
    )
