# SPDX-License-Identifier: GPL-2.0-or-later
"""One migration from the first question to the last: QEMU's stream is handed to a relay, both QEMUs are followed.

The relay runs in a thread of its own and needs nobody: whatever QMP does, the stream goes on, and who runs the guest
is decided by the relay's session alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from qmpfilter.errors import DeadlineError, HostError, QmpfilterError
from qmpfilter.filter.gate import Gate, Memory
from qmpfilter.filter.policy import Policy
from qmpfilter.qmp.destination import Destination
from qmpfilter.qmp.endpoint import Endpoint
from qmpfilter.qmp.source import Source
from qmpfilter.qmp.whereabouts import Whereabouts, whereabouts
from qmpfilter.relay.address import Listening
from qmpfilter.relay.deadline import Deadline
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.pair import Pair, Pairing
from qmpfilter.relay.relay import Relay
from qmpfilter.relay.report import as_json
from qmpfilter.relay.session import STOPPED, Outcome, Phase, outcome_of

__all__ = ["MEMORY_SECONDS", "Migration", "wait_in"]

MEMORY_SECONDS: Final = 5.0
"""For VMCB12 pages, while the guest stands still; a migration goes on without them."""

_WATCH_SECONDS: Final = 0.1
_DELIVERED: Final = (Outcome.COMPLETED, Outcome.SENT)
_Value = TypeVar("_Value")


class Migration:
    """A migration that is carried out once.

    :param source: not connected yet
    :param target: an address at which a destination waits, or a destination that is not connected yet
    :param is_off: the kill switch, see :class:`~qmpfilter.filter.gate.Gate`
    :param read_memory: VMCB12 pages are read from the source where the stream leaves something to be guessed
    :param make_gate: makes what looks into the stream
    :param pairing: how the filter at the target is met, if one is there
    :ivar gate: what looks into the stream
    :ivar relay: what passes it on
    """

    def __init__(
        self,
        source: Source,
        target: Listening | Destination,
        policy: Policy,
        waits: Waits,
        *,
        is_off: Callable[[], bool] = lambda: False,
        read_memory: bool = True,
        make_gate: Callable[[Policy, Callable[[], bool], Memory | None], Gate] = Gate,
        pairing: Pairing = Pairing(),  # noqa: B008 - frozen
    ) -> None:
        self.source = source
        self.destination = target if isinstance(target, Destination) else None
        self.gate = make_gate(policy, is_off, self._read_memory if read_memory else None)
        self.pair = Pair(pairing, waits, self.gate, is_off, lambda: source.uuid)
        self.relay = (
            Relay(self._connect, self.gate, waits) if isinstance(target, Destination) else self.pair.relay(target)
        )
        self._begun = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cancelled = False
        self._main: asyncio.Task[Any] | None = None
        self._unwanted = False
        self._why = STOPPED

    @property
    def ends(self) -> tuple[Endpoint, ...]:
        """The QEMUs that are spoken with."""
        return (self.source,) if self.destination is None else (self.source, self.destination)

    @property
    def whereabouts(self) -> Whereabouts:
        """Who has the guest, where both QEMUs were asked in the end."""
        return Whereabouts.UNKNOWN if self.destination is None else whereabouts(self.source, self.destination)

    @property
    def committed(self) -> bool:
        """The destination may run the guest: nothing ends the migration any more."""
        return "committed" in self.relay.moments

    async def run(self) -> Outcome:
        """Carry it out.

        :raises PolicyError: a QEMU is set up in a way that forbids it; nothing was changed
        :raises HostError: it could not be begun; nothing stays changed
        :raises asyncio.CancelledError: :meth:`interrupt` came before it was begun
        """
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        try:
            if self._unwanted:
                raise asyncio.CancelledError
            ours = await self._begin()
            outcome = await self._relayed(ours)
            await self._settle(outcome)
            return outcome
        except (QmpfilterError, asyncio.CancelledError) as error:
            if isinstance(error, QmpfilterError):
                self.relay.stop(error, outcome_of(error))
            else:
                self.relay.stop(HostError(self._why), Outcome.STOPPED)
            if not self._begun:
                # Stopped, it only closes what it has.
                self.relay.run([])
            raise
        finally:
            for end in self.ends:
                await end.close()

    def interrupt(self, reason: str = STOPPED) -> None:
        """End it, unless its commit point has passed; in the loop that runs it."""
        self._why = reason
        if self._begun:
            self.relay.stop(HostError(reason), Outcome.STOPPED)
        elif self._main is not None:
            self._main.cancel()
        else:
            self._unwanted = True

    def report(self) -> dict[str, Any]:
        """For :func:`json.dumps`: the relay's report, and what both QEMUs said."""
        return {
            **as_json(self.relay, self.gate, self.pair.links),
            "source": self.source.as_json(),
            "destination": None if self.destination is None else self.destination.as_json(),
            "guest_at": self.whereabouts.value,
        }

    # --- before --------------------------------------------------------------------------------

    async def _begin(self) -> socket.socket:
        """Both QEMUs prepared, the source migrating on a socket; returns the other end."""
        await self.source.connect()
        await self.source.check()
        if self.destination is not None:
            await self.destination.connect()
            await self.destination.check()
        ours, theirs = socket.socketpair()
        try:
            if self.destination is not None:
                await self.destination.prepare(self.source.wanted())
            await self.source.start(theirs)
        except BaseException:
            ours.close()
            theirs.close()
            for end in self.ends:
                await end.restore()
            raise
        return ours

    # --- during --------------------------------------------------------------------------------

    async def _relayed(self, ours: socket.socket) -> Outcome:
        over = asyncio.Event()
        followers = [asyncio.create_task(end.follow(over)) for end in self.ends]
        self._begun = True
        relaying = asyncio.create_task(asyncio.to_thread(self.relay.run, [ours]))
        try:
            while not relaying.done():
                await asyncio.wait((relaying,), timeout=_WATCH_SECONDS)
                await self._cancel_if_ended()
            return relaying.result()
        finally:
            over.set()
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)

    async def _cancel_if_ended(self) -> None:
        """Tell a source whose relay has given up: one that is in the midst of memory would not look at its
        connection, and one that is to pause before the switch-over at nothing.

        Only what the relay has ended, so that nothing of it will pass, and only before the commit point.
        """
        if self._cancelled or self.committed or self.relay.session.phase is not Phase.ENDED:
            return
        with contextlib.suppress(HostError):
            await self.source.cancel()
            self._cancelled = True

    def _connect(self, deadline: Deadline, _source: socket.socket) -> socket.socket:
        """For the relay, from a thread of its own."""
        assert self.destination is not None
        return self._wait(self.destination.open(), deadline.remaining(), deadline.what)

    def _read_memory(self, addresses: Sequence[int]) -> Mapping[int, bytes]:
        """For the gate, from a thread of the relay."""
        return self._wait(self.source.read_pages(addresses), MEMORY_SECONDS, "reading guest memory")

    def _wait(self, work: Coroutine[Any, Any, _Value], seconds: float, what: str) -> _Value:
        assert self._loop is not None
        return wait_in(self._loop, work, seconds, what)

    # --- after ---------------------------------------------------------------------------------

    async def _settle(self, outcome: Outcome) -> None:
        """Hear what became of it from both QEMUs, and leave them as they were where that means anything."""
        stayed = outcome not in _DELIVERED and outcome is not Outcome.IN_DOUBT
        await asyncio.gather(
            self.source.settle_back() if stayed else self.source.settle(),
            *([] if self.destination is None else [self.destination.settle()]),
        )
        if not self.source.info.completed:
            await self.source.restore()
        if self.destination is not None:
            await self.destination.restore()


def wait_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _Value], seconds: float, what: str) -> _Value:
    """Have a loop that runs in another thread do something, and wait for it.

    :raises DeadlineError: it takes too long, or the loop has ended
    """
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError as error:
        work.close()
        raise DeadlineError(f"{what}: too late") from error
    try:
        return future.result(seconds)
    except (TimeoutError, concurrent.futures.CancelledError) as error:
        future.cancel()
        raise DeadlineError(f"{what} took longer than {seconds:g} s") from error
