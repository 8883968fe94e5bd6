# SPDX-License-Identifier: GPL-2.0-or-later
"""One migration that libvirt carries out, and whose stream passes through a relay of this process.

libvirt decides in the end which of the two QEMUs runs the guest, and is asked for it. The relay runs in a thread of
its own and needs nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qmpfilter.errors import HostError, QmpfilterError
from qmpfilter.filter.gate import Gate
from qmpfilter.filter.policy import Policy
from qmpfilter.libvirt import job
from qmpfilter.libvirt.connection import Connection, Domain, State
from qmpfilter.libvirt.options import Flag
from qmpfilter.libvirt.route import Route
from qmpfilter.libvirt.whereabouts import whereabouts
from qmpfilter.qmp.info import MigrationInfo
from qmpfilter.qmp.migration import MEMORY_SECONDS, wait_in
from qmpfilter.qmp.whereabouts import Whereabouts
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.pair import Pair, Pairing
from qmpfilter.relay.report import as_json
from qmpfilter.relay.session import STOPPED, Outcome, Phase

__all__ = ["Ends", "Late", "Migration", "Pace"]

_PAST: Final = "libvirt says that it has migrated the guest, and nothing came through the relay"
_TICK: Final = 0.1
_ASK_SECONDS: Final = 0.5
_LAST_SECONDS: Final = 60.0
_FIRST_ROUND: Final = 1


@dataclass(frozen=True, slots=True)
class Ends:
    """Who is asked.

    :param source: the libvirt that has the domain
    :param destination: the other; None where only the source's libvirt can reach it
    :param desturi: its URI
    """

    source: Connection
    destination: Connection | None
    desturi: str


class Late(enum.Enum):
    """What is done with a guest whose memory is copied too slowly: virsh's ``--timeout``."""

    SUSPEND = enum.auto()
    POSTCOPY = enum.auto()


@dataclass(frozen=True, slots=True)
class Pace:
    """When a migration is helped along.

    :param seconds: after so long, None for never
    :param late: then that is done
    :param after_precopy: postcopy begins when all memory was gone through once
    """

    seconds: float | None = None
    late: Late = Late.SUSPEND
    after_precopy: bool = False


class Migration:
    """Carried out once.

    :param listener: at which the relay listens
    :param is_off: the kill switch, see :class:`~qmpfilter.filter.gate.Gate`
    :param read_memory: VMCB12 pages are read through libvirt where the stream leaves something to be guessed
    :param pairing: how the filter before the destination is met, if one is there
    :ivar gate: what looks into the stream
    :ivar relay: what passes it on
    :ivar pair: the other filter
    :ivar states: of the domain at the source and at the destination, as their libvirts told in the end
    :ivar error: what libvirt said, empty if the migration was fine to it
    :ivar problems: what could not be learnt or done besides
    """

    def __init__(
        self,
        ends: Ends,
        domain: Domain,
        route: Route,
        listener: socket.socket,
        flags: Flag,
        policy: Policy,
        waits: Waits,
        *,
        pace: Pace | None = None,
        is_off: Callable[[], bool] = lambda: False,
        read_memory: bool = True,
        pairing: Pairing = Pairing(),  # noqa: B008 - frozen
    ) -> None:
        self.gate = Gate(policy, is_off, self._read_memory if read_memory else None)
        self.pair = Pair(pairing, waits, self.gate, is_off, lambda: domain.uuid)
        self.relay = self.pair.relay(route.onward)
        self.states: tuple[State | None, State | None] = (None, None)
        self.error = ""
        self.problems: list[str] = []
        self._ends = ends
        self._domain = domain
        self._route = route
        self._listener = listener
        self._flags = flags
        self._waits = waits
        self._pace = pace or Pace()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stats: Mapping[str, Any] = {}
        self._asked = 0.0
        self._aborted = False
        self._helped = False

    @property
    def committed(self) -> bool:
        """The destination may run the guest: nothing ends the migration any more."""
        return "committed" in self.relay.moments

    @property
    def whereabouts(self) -> Whereabouts:
        """Who has the guest, where both libvirts were asked in the end."""
        return whereabouts(*self.states)

    @property
    def progress(self) -> MigrationInfo:
        """How far it is, in libvirt's figures."""
        return job.progress(self._stats, self.relay.session.phase.value)

    def interrupt(self) -> None:
        """End it, unless its commit point has passed; in the loop that runs it."""
        self.relay.stop(HostError(STOPPED), Outcome.STOPPED)

    async def run(self) -> Outcome:
        """Carry it out. What libvirt says against it is in :attr:`error`."""
        self._loop = asyncio.get_running_loop()
        began = time.monotonic()
        relaying = asyncio.create_task(asyncio.to_thread(self.relay.run, [self._listener]))
        moving = asyncio.create_task(self._move())
        ended: float | None = None
        while not (relaying.done() and moving.done()):
            running = [task for task in (relaying, moving) if not task.done()]
            await asyncio.wait(running, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
            if moving.done():
                self._told()
            elif relaying.done():
                ended = ended or time.monotonic()
                # Without this client libvirt would take the guest from a destination that has it.
                limit = self._waits.answer if self.committed else _LAST_SECONDS
                if time.monotonic() - ended > limit:
                    self.error = f"libvirt has not come back within {limit:g} s of the end of the stream"
                    moving.cancel()
                    break
            if not moving.done():
                await self._attend(began)
        await self._settle()
        return relaying.result()

    def report(self) -> dict[str, Any]:
        """For :func:`json.dumps`: the relay's report, and what both libvirts said."""
        source, destination = self.states
        return {
            "domain": {"name": self._domain.name, "uuid": self._domain.uuid},
            "listen": str(self._route.listen),
            "connect": str(self._route.onward),
            **as_json(self.relay, self.gate, self.pair.links),
            "libvirt": {
                "source": {"uri": self._ends.source.uri, "state": source and source.name},
                "destination": {"uri": self._ends.desturi, "state": destination and destination.name},
                "flags": self._flags.names,
                "parameters": self._route.parameters,
                "error": self.error,
                "job": job.as_json(self._stats),
                "problems": self.problems,
            },
            "guest_at": self.whereabouts.value,
        }

    # --- during --------------------------------------------------------------------------------

    async def _move(self) -> None:
        ends = self._ends
        peer = ends.desturi if Flag.PEER2PEER in self._flags else ends.destination
        assert peer is not None
        try:
            await self._domain.migrate(peer, self._route.parameters, self._flags)
        except HostError as error:
            self.error = str(error)

    def _told(self) -> None:
        """libvirt has ended its part. What is before its commit point has no source any more."""
        if not self.committed:
            self.relay.stop(HostError(self.error or _PAST))

    async def _attend(self, began: float) -> None:
        """What is to be asked and done while libvirt migrates."""
        if self.relay.session.phase is Phase.ENDED:
            await self._abort()
            return
        if time.monotonic() - self._asked < _ASK_SECONDS:
            return
        # Before its job begins there is nothing to be asked, and a deadline is libvirt's to break.
        with contextlib.suppress(HostError):
            self._stats = await self._domain.job()
        self._asked = time.monotonic()
        if not self._helped:
            await self._help(time.monotonic() - began)

    async def _abort(self) -> None:
        """Tell a source whose relay has given up: one that is in the midst of memory would not look at its
        connection, and one that copies disks at nothing.

        Only what the relay has ended, so that nothing of it will pass, and only before the commit point; again until
        there is a job that can be given up.
        """
        if self._aborted or self.committed:
            return
        with contextlib.suppress(HostError):
            await self._domain.abort_job()
            self._aborted = True

    async def _help(self, seconds: float) -> None:
        pace = self._pace
        try:
            if pace.after_precopy and job.iteration(self._stats) > _FIRST_ROUND:
                self._helped = True
                await self._domain.start_postcopy()
            elif pace.seconds is not None and seconds >= pace.seconds:
                self._helped = True
                await (self._domain.start_postcopy() if pace.late is Late.POSTCOPY else self._domain.suspend())
        except HostError as error:
            self.problems.append(str(error))

    def _read_memory(self, addresses: Sequence[int]) -> Mapping[int, bytes]:
        """For the gate, from a thread of the relay."""
        assert self._loop is not None
        return wait_in(self._loop, self._domain.read_pages(addresses), MEMORY_SECONDS, "reading guest memory")

    # --- after ---------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Ask both libvirts what became of it."""
        ends, uuid = self._ends, self._domain.uuid
        self.states = (await self._state(ends.source, uuid), await self._state(ends.destination, uuid))
        with contextlib.suppress(QmpfilterError):
            self._stats = await self._last_job() or self._stats

    async def _state(self, connection: Connection | None, uuid: str) -> State | None:
        if connection is None:
            return None
        try:
            return await connection.state_of(uuid)
        except HostError as error:
            self.problems.append(f"{connection.uri}: {error}")
            return None

    async def _last_job(self) -> Mapping[str, Any]:
        """The whole migration's numbers, which the destination has too when the source's domain is gone."""
        if self.whereabouts is Whereabouts.DESTINATION and self._ends.destination is not None:
            arrived = await self._ends.destination.domain(self._domain.uuid)
            return await arrived.job(completed=True)
        return {}
