# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter migrate --qmp``: a guest leaves its QEMU, which is told so over QMP."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import click

from qmpfilter.cli.interrupt import on_signal
from qmpfilter.cli.migration_progress import MigrationProgress
from qmpfilter.cli.output import write_out
from qmpfilter.cli.policy_options import EXIT_IN_DOUBT, EXIT_STAYED, STATUS, Choices
from qmpfilter.qmp.destination import parse_target
from qmpfilter.qmp.endpoint import Endpoint
from qmpfilter.qmp.migration import Migration
from qmpfilter.qmp.source import Source
from qmpfilter.qmp.whereabouts import Whereabouts
from qmpfilter.relay.pair import Pairing, check_certificates
from qmpfilter.relay.report import as_text
from qmpfilter.relay.session import Outcome

__all__ = ["migrate_qmp"]

_SHOW_SECONDS: Final = 0.25
_ALARMS: Final = {
    Whereabouts.BOTH: "both QEMUs say that they run the guest: stop one of them now",
    Whereabouts.NEITHER: "the guest has left its source and did not arrive: 'cont' at the source's QEMU revives it",
}


def migrate_qmp(qmp: str, target: str, read_memory: bool, choices: Choices, pairing: Pairing) -> int:
    """Carry it out; returns the exit status.

    :param qmp: the QMP socket of the source
    :param target: an address, also with ``pair:`` before it, or ``qmp:`` and the QMP socket of the destination
    :raises QmpfilterError: nothing was begun
    """
    onward = parse_target(target)
    check_certificates(None, onward, pairing)
    migration = Migration(
        Source(qmp, leave_return_path=choices.policy.without_return_path),
        onward,
        choices.policy,
        choices.waits,
        is_off=choices.kill_switch.exists,
        read_memory=read_memory,
        pairing=pairing,
    )
    with MigrationProgress() as progress:
        try:
            outcome = asyncio.run(_run(migration, progress))
        except asyncio.CancelledError:
            raise click.Abort from None
    choices.write_report(migration.report())
    write_out(as_text(migration.relay, migration.gate, migration.pair.links) + _both_as_text(migration))
    return _judge(migration, outcome)


async def _run(migration: Migration, progress: MigrationProgress) -> Outcome:
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        migration.interrupt()
        if migration.committed:
            progress.say("the destination may run the guest already: still waiting for its word")

    def signalled() -> None:
        loop.call_soon_threadsafe(interrupt)

    work = asyncio.create_task(migration.run())
    with on_signal(signalled):
        while not work.done():
            await asyncio.wait((work,), timeout=_SHOW_SECONDS)
            progress.update(migration.source.info)
    return work.result()


def _both_as_text(migration: Migration) -> str:
    lines = _as_lines("source", migration.source)
    if migration.destination is not None:
        lines += _as_lines("destination", migration.destination)
    return "".join(f"  {line}\n" for line in lines)


def _as_lines(name: str, end: Endpoint) -> list[str]:
    info = end.info
    migration = info.status or "not begun"
    if info.error:
        migration += f" ({info.error})"
    if info.completed and info.total_time:
        migration += f" in {info.total_time} ms, guest stopped for {info.downtime} ms"
    guest = "gone" if end.gone else end.guest or "not known"
    first = f"{name}, QEMU {end.version or 'of a version not known'}: migration {migration}; guest {guest}"
    return [first, *(f"{name}: {problem}" for problem in end.problems)]


def _judge(migration: Migration, outcome: Outcome) -> int:
    """The exit status; what the operator has to know goes to standard error."""
    source, where = migration.source, migration.whereabouts
    doubtful = outcome in (Outcome.SENT, Outcome.IN_DOUBT)
    if where in _ALARMS:
        return _say(_ALARMS[where], EXIT_IN_DOUBT)
    if doubtful and where in (Whereabouts.SOURCE, Whereabouts.DESTINATION):
        status = 0 if where is Whereabouts.DESTINATION else EXIT_STAYED
        return _say(f"both QEMUs were asked: the {where.value} has the guest", status)
    if outcome is Outcome.VETOED:
        again = "runs again" if source.runs else f"is {source.guest or 'not known to run'}"
        return _say(f"{migration.relay.session.reason}; at the source the guest {again}", STATUS[outcome])
    return STATUS[outcome]


def _say(text: str, status: int) -> int:
    print(f"qmpfilter: {text}", file=sys.stderr)
    return status
