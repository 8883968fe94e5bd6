# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter migrate DOMAIN DESTURI``: libvirt migrates, and this command is in the way of the stream."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import click

from qmpfilter.cli.interrupt import on_signal
from qmpfilter.cli.migration_progress import MigrationProgress, as_size
from qmpfilter.cli.output import write_out
from qmpfilter.cli.policy_options import EXIT_IN_DOUBT, EXIT_STAYED, STATUS, Choices
from qmpfilter.errors import HostError
from qmpfilter.libvirt.connection import Connection, Domain
from qmpfilter.libvirt.migration import Ends, Migration, Pace
from qmpfilter.libvirt.options import Flag, wanted
from qmpfilter.libvirt.outlook import REGISTERS, outlook, svm_use
from qmpfilter.libvirt.route import Route, check_source_is_here, choose_route, parse_onward, without_questions
from qmpfilter.qmp.whereabouts import Whereabouts
from qmpfilter.relay.address import parse_address
from qmpfilter.relay.pair import Pairing, check_certificates
from qmpfilter.relay.report import as_text
from qmpfilter.relay.session import Outcome

__all__ = ["Request", "migrate_domain"]

_SHOW_SECONDS: Final = 0.25
# Who uses --p2p may have no way of his own to the destination, and then is not kept waiting for it.
_PEER_SECONDS: Final = 10.0
_ALARMS: Final = {
    Whereabouts.BOTH: "both libvirts say that they run the guest: stop one of them now",
    Whereabouts.NEITHER: "neither libvirt has the guest: look at the logs of both before you start it anywhere",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line says.

    :param connect: the source's libvirt, None for the default one
    :param given: options of virsh by their keys
    :param relay_at: where the relay listens, None for anywhere
    :param onward: where the destination is reached, None for where its libvirt is
    :param pairing: how the filter there is met, if one is
    """

    domain: str
    desturi: str
    connect: str | None
    given: Mapping[str, Any]
    relay_at: str | None
    onward: str | None
    pace: Pace
    pairing: Pairing
    read_memory: bool
    dry_run: bool


def migrate_domain(request: Request, choices: Choices) -> int:
    """Carry it out, or say what would be done; returns the exit status."""
    with MigrationProgress() as progress:
        try:
            return asyncio.run(_Command(request, choices, progress).run())
        except asyncio.CancelledError:
            raise click.Abort from None


class _Command:
    def __init__(self, request: Request, choices: Choices, progress: MigrationProgress) -> None:
        self._request = request
        self._choices = choices
        self._progress = progress
        self._migration: Migration | None = None

    async def run(self) -> int:
        request = self._request
        flags, parameters = wanted(request.given)
        relay_at = None if request.relay_at is None else parse_address(request.relay_at)
        onward = None if request.onward is None else parse_onward(request.onward)
        check_certificates(None, onward, request.pairing)
        loop, main = asyncio.get_running_loop(), asyncio.current_task()
        assert main is not None

        def interrupt() -> None:
            if self._migration is None:
                main.cancel()
                return
            self._migration.interrupt()
            if self._migration.committed:
                self._progress.say("the destination may run the guest already: still waiting for its word")

        def signalled() -> None:
            loop.call_soon_threadsafe(interrupt)

        with on_signal(signalled):
            async with self._connected(flags) as (ends, domain):
                await _check_places(ends, domain)
                await self._heed_domain(domain)
                route, listener = await asyncio.to_thread(
                    choose_route, request.desturi, flags, parameters, relay_at, onward
                )
                if request.dry_run:
                    listener.close()
                    return await self._say_what_would_be(ends, domain, route, flags)
                return await self._carry_out(ends, domain, route, listener, flags)

    async def _carry_out(
        self, ends: Ends, domain: Domain, route: Route, listener: socket.socket, flags: Flag
    ) -> int:  # fmt: skip
        choices = self._choices
        migration = self._migration = Migration(
            ends,
            domain,
            route,
            listener,
            flags,
            choices.policy,
            choices.waits,
            pace=self._request.pace,
            is_off=choices.kill_switch.exists,
            read_memory=self._request.read_memory,
            pairing=self._request.pairing,
        )
        work = asyncio.create_task(migration.run())
        while not work.done():
            await asyncio.wait((work,), timeout=_SHOW_SECONDS)
            self._progress.update(migration.progress, _filtered(migration))
        outcome = work.result()
        choices.write_report(migration.report())
        write_out(
            as_text(migration.relay, migration.gate, migration.pair.links)
            + _libvirts_as_text(ends, domain, migration)
        )
        return _judge(migration, outcome)

    @contextlib.asynccontextmanager
    async def _connected(self, flags: Flag) -> AsyncIterator[tuple[Ends, Domain]]:
        request = self._request
        if request.connect is not None:
            check_source_is_here(request.connect)
        source = await Connection.open(request.connect)
        try:
            check_source_is_here(source.uri)
            domain = await source.domain(request.domain)
            destination = await self._reach_destination(flags)
            try:
                yield Ends(source, destination, request.desturi), domain
            finally:
                if destination is not None:
                    await destination.close()
        finally:
            await source.close()

    async def _reach_destination(self, flags: Flag) -> Connection | None:
        uri = self._request.desturi
        if Flag.PEER2PEER not in flags:
            return await Connection.open(uri)
        try:
            return await Connection.open(without_questions(uri), _PEER_SECONDS)
        except HostError as error:
            self._progress.say(f"{error}; so the destination cannot be asked in the end who runs the guest")
            return None

    async def _heed_domain(self, domain: Domain) -> None:
        """What the domain's metadata ask for, below what the command line says."""
        asked = await domain.policy()
        if asked:
            policy = asked.applied(self._choices.policy, self._choices.given)
            self._choices = replace(self._choices, policy=policy)
            self._progress.say(f"the domain {domain.name} asks for: {asked}")

    async def _say_what_would_be(self, ends: Ends, domain: Domain, route: Route, flags: Flag) -> int:
        how = "has its own libvirt migrate it there" if Flag.PEER2PEER in flags else "migrates it there"
        lines = [
            f"nothing was done; the command {how}:",
            f"  domain: {domain.name}, {domain.uuid}",
            f"  source: {ends.source.uri}",
            f"  destination: {ends.desturi}{'' if ends.destination else ' (not reached from here)'}",
            f"  stream: to {route.listen} (qmpfilter), on to {route.onward}; a port left open may be another then",
            f"  flags: {', '.join(flags.names) or 'none'}",
            *(f"  {name}: {value}" for name, value in route.parameters.items()),
            *(f"  {line}" for line in outlook(self._choices.policy)),
            f"  {await _svm_use(domain)}",
        ]
        write_out("".join(f"{line}\n" for line in lines))
        return 0


async def _check_places(ends: Ends, domain: Domain) -> None:
    """:raises HostError: the guest does not run here, or runs there already"""
    state = await ends.source.state_of(domain.uuid)
    if not state.active:
        raise HostError(
            f"the domain {domain.name} is {state.name}: there is no state to filter; 'virsh migrate --offline "
            "--persistent' moves its definition"
        )
    if ends.destination is not None and (await ends.destination.state_of(domain.uuid)).active:
        raise HostError(f"{ends.desturi} has a domain with the UUID of {domain.name} that runs: it cannot go there")


async def _svm_use(domain: Domain) -> str:
    try:
        return svm_use(await domain.ask_monitor(REGISTERS))
    except HostError as error:
        return f"which vCPUs use SVM could not be asked: {error}"


def _filtered(migration: Migration) -> str:
    relay, gate = migration.relay, migration.gate
    if not relay.forward:
        return ""
    edits = f", {gate.edits} of {len(gate.vcpus)} vCPUs edited" if gate.vcpus else ""
    return f"{as_size(relay.forward)} through the filter{edits}"


def _libvirts_as_text(ends: Ends, domain: Domain, migration: Migration) -> str:
    lines = []
    for name, uri, state in zip(
        ("source", "destination"), (ends.source.uri, ends.desturi), migration.states, strict=True
    ):
        lines.append(f"{name}, {uri}: {domain.name} is {'not known' if state is None else state.name}")
    info = migration.progress
    if migration.whereabouts is Whereabouts.DESTINATION and info.total_time:
        lines[-1] += f"; migrated in {info.total_time} ms, guest stopped for {info.downtime} ms"
    if migration.error:
        lines.append(migration.error)
    return "".join(f"  {line}\n" for line in [*lines, *migration.problems])


def _judge(migration: Migration, outcome: Outcome) -> int:
    """The exit status; what the operator has to know goes to standard error."""
    where, status = migration.whereabouts, STATUS[outcome]
    why = migration.relay.session.reason or migration.error
    if where in _ALARMS:
        return _say(_ALARMS[where], EXIT_IN_DOUBT)
    if where is Whereabouts.DESTINATION and not migration.committed:
        return _say("the guest is at the destination, and its stream did not come through here", EXIT_IN_DOUBT)
    if where is Whereabouts.DESTINATION:
        return 0
    if where is Whereabouts.SOURCE:
        vetoed = outcome is Outcome.VETOED
        return _say(f"{why}; the guest is at the source", status if vetoed else EXIT_STAYED)
    if migration.error and status == 0:
        # The stream arrived, and what libvirt made of it nobody can tell.
        return _say(f"{migration.error}; ask both libvirts who runs the guest", EXIT_IN_DOUBT)
    return _say(why, status) if status else status


def _say(text: str, status: int) -> int:
    print(f"qmpfilter: {text}", file=sys.stderr)
    return status
