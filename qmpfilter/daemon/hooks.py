# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt's hook asks: may this domain come, what is put before its QEMU, may this image be restored.

While a hook runs, libvirt answers nobody about the domain. So nothing here asks libvirt; what has to be known comes
from the domain's XML, from /proc, and from what was learnt of this host before.

The answer to a hook has ``xml``, the domain's XML with what is to be in it, or ``veto``, one sentence for whoever
asked for the migration, or neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from qmpfilter import __version__
from qmpfilter.daemon.announced import Announced
from qmpfilter.daemon.control import Request
from qmpfilter.daemon.ingress import Front
from qmpfilter.daemon.redirects import Redirects
from qmpfilter.daemon.reports import new_name
from qmpfilter.daemon.restoring import check_image
from qmpfilter.daemon.roster import Roster, Wanted
from qmpfilter.daemon.sessions import Session, Stage
from qmpfilter.doctor.gather import gather
from qmpfilter.errors import HostError, PolicyError, QmpfilterError
from qmpfilter.filter.policy import Mode, Policy
from qmpfilter.libvirt.arrival import Arrival
from qmpfilter.libvirt.domain import DomainXml
from qmpfilter.libvirt.incoming import Incoming, find_incoming, is_loopback
from qmpfilter.libvirt.metadata import NAMESPACE, DomainPolicy
from qmpfilter.verdict.facts import HostFacts

__all__ = ["Hooks"]

_log: Final = logging.getLogger(__name__)

_Answer = dict[str, Any]

_ANNOUNCE: Final = ("migrate", "begin")
_START: Final = ("started", "begin")


class Hooks:
    """Answers libvirt's hook.

    :param roster: has the sessions, and the configuration
    :param allowed: the mode that this host's cluster allows for a domain, told its UUID and the mode of its own
        policy; None if no cluster has a say
    :param redirects: rules of nftables, where they are wanted
    """

    def __init__(
        self, roster: Roster, allowed: Callable[[str, Mode | None], Mode | None], redirects: Redirects
    ) -> None:
        self._roster = roster
        self._allowed = allowed
        self._redirects = redirects
        self._facts: asyncio.Task[HostFacts] | None = None
        self._announced = Announced(roster.config.runtime / "arrivals")
        # Sessions of which it is not settled yet that they stay.
        self._beginning: set[str] = set()
        self._operations: dict[tuple[str, str], Callable[[DomainXml, Request], Awaitable[_Answer]]] = {
            _ANNOUNCE: self._announce,
            _START: self._put_before,
            ("restore", "begin"): self._check_image,
            ("stopped", "end"): self._forget,
            ("release", "end"): self._forget,
        }

    async def answer(self, request: Request) -> _Answer:
        """What a hook is told.

        :raises HostError: the request is wrong
        """
        operation = request.text("operation"), request.text("sub")
        request.text("extra", "")
        name = request.text("domain")
        xml = request.text("xml", "")
        request.end()
        if operation not in self._operations:
            raise HostError(f"no hook is run for {' '.join(operation)}")
        # Where what arrives must be filtered, it is refused if it cannot be. Not so an image: one that is too long to
        # be looked at in time must still be restored; nor a guest that just starts here.
        arrives = operation == _ANNOUNCE
        try:
            domain = DomainXml(xml)
            if domain.name != name:
                raise HostError(f"the XML of {domain.name!r} came for {name!r}")
            arrives |= operation == _START and domain.uuid in self._announced
            return await self._operations[operation](domain, request)
        except QmpfilterError as error:
            why = str(error)
            vetoes = isinstance(error, PolicyError)
        except Exception as error:
            # An error would be no answer, and without one the hook lets everything pass.
            _log.exception("domain %s, %s", name, operation[0])
            why, vetoes = f"{type(error).__name__}: {error}", False
        if (vetoes or (arrives and self._roster.config.ingress.required)) and not self._is_off:
            _log.warning("domain %s is refused: %s", name, why)
            return {"veto": why}
        _log.warning("domain %s, %s: %s", name, operation[0], why)
        return {}

    def ended(self, report: Mapping[str, Any]) -> None:
        """A session has ended: what was put before a QEMU for it goes.

        :param report: the session's
        """
        if report.get("session") not in self._beginning:
            Front.clear(report)

    # --- operations ----------------------------------------------------------------------------

    async def _announce(self, domain: DomainXml, request: Request) -> _Answer:
        """A domain is about to arrive: what the session will be, so that its metadata can say so."""
        name = new_name()
        if not self._is_off:
            self._policy(domain, HostFacts())
            self._look()
        request.check_waited_for()
        self._announced.add(domain.uuid, name)
        if self._is_off:
            return {}
        coming = Arrival(
            session=name,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
            version=__version__,
            records=str(self._roster.config.records_directory(name)),
        )
        return {"xml": domain.with_element(coming.element())}

    async def _put_before(self, domain: DomainXml, request: Request) -> _Answer:
        """Its QEMU runs: if it waits for a guest that was announced, the source is to come here first."""
        announced = self._announced.take(domain.uuid)
        incoming = await asyncio.to_thread(find_incoming, domain.uuid, domain.ports, domain.paths)
        if incoming is None:
            return {}
        await self._redirects.vacate(incoming.places)
        if announced is None:
            # It is restored from a file: no source comes, and where it listens is its own.
            if incoming.listens:
                shown = ", ".join(map(str, incoming.listens))
                _log.warning(
                    "domain %s: not announced to this daemon, so nothing is put before %s", domain.name, shown
                )
            return {}
        if self._is_off and not self._unreachable(incoming):
            return {}
        if not incoming.listens:
            raise HostError("its QEMU listens nowhere: a tunnelled migration goes past every filter")
        policy = self._policy(domain, await self._known())
        config = self._roster.config
        name = announced if self._roster.is_free(announced) else new_name()
        request.check_waited_for()
        self._beginning.add(name)
        try:
            with Front(incoming, config.ingress.addresses, nft=config.ingress.nft) as front:
                async with self._redirects.leading(name, domain.uuid, front.redirect, config.waits.source):
                    session = await self._begin(
                        Wanted(
                            listen=front.listening,
                            connect=front.connect,
                            policy=policy,
                            waits=config.waits,
                            asked_by=f"libvirt's hook, {request.peer}",
                            session=name,
                            name=domain.name,
                            uuid=domain.uuid,
                            keep_records=True,
                            redirected=0 if front.redirect is None else front.redirect.port,
                            storage=front.storage,
                        ),
                        request,
                    )
                front.keep()
        finally:
            self._beginning.discard(name)
        _log.info(
            "domain %s: its source comes to %s, session %s",
            domain.name, front.listening.shown, session.origin.session, extra={"session": session.origin.session},
        )  # fmt: skip
        return {}

    async def _begin(self, wanted: Wanted, request: Request) -> Session:
        """A session that is left only if the hook hears of it."""
        try:
            session = await self._roster.start(wanted)
            request.check_waited_for()
        except BaseException:
            with contextlib.suppress(HostError):
                self._roster.stop(wanted.session, "libvirt's hook did not wait for it")
            raise
        return session

    async def _check_image(self, domain: DomainXml, _: Request) -> _Answer:
        """An image is about to be restored: whether this host takes what is in it."""
        # An arrival that was announced before has come to nothing.
        self._announced.take(domain.uuid)
        if self._is_off:
            return {}
        self._look()
        policy = self._policy(domain, await self._known())
        await asyncio.to_thread(check_image, domain.uuid, policy)
        return {}

    async def _forget(self, domain: DomainXml, _: Request) -> _Answer:
        """Its QEMU is gone: nobody will come any more."""
        self._announced.take(domain.uuid)
        for session in self._roster.running():
            if session.origin.uuid == domain.uuid and session.stage in (Stage.STARTING, Stage.WAITING):
                self._roster.stop(session.origin.session, "the QEMU that it waited before has ended")
        self._redirects.forget(domain.uuid)
        return {}

    # --- what they need ------------------------------------------------------------------------

    @staticmethod
    def _unreachable(incoming: Incoming) -> bool:
        """No source reaches its QEMU but by way of this daemon."""
        return any(map(is_loopback, incoming.places))

    @property
    def _is_off(self) -> bool:
        return self._roster.config.kill_switch.exists()

    def _look(self) -> None:
        """Look at this host, in the background. What it accepts may change while the daemon runs: modules are loaded
        again, QEMUs are upgraded."""
        self._facts = asyncio.create_task(asyncio.to_thread(lambda: gather().facts))

    async def _known(self) -> HostFacts:
        if self._facts is None:
            self._look()
        assert self._facts is not None
        return await asyncio.shield(self._facts)

    def _policy(self, domain: DomainXml, facts: HostFacts) -> Policy:
        """The configuration's, as the domain's own changes it, for this host as the destination.

        :raises PolicyError: the domain's makes no sense
        """
        # With the kill switch on, nobody is refused for what they asked for.
        asked = {} if self._is_off else domain.attributes(NAMESPACE) or {}
        own = DomainPolicy.from_attributes(asked)
        policy = self._roster.config.policy
        mode = self._allowed(domain.uuid, own.mode) or own.mode or policy.mode
        # Native svm2 is for a peer; this host's QEMU takes the annex.
        mode = Mode.ANNEX if mode is Mode.NATIVE else mode
        return own.applied(replace(policy, mode=mode, facts=facts), given=["mode"])
