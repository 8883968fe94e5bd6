# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt's hook asks: may this domain come, what is put before its QEMU, may this image be restored.

While a hook runs, libvirt answers nobody about the domain. So nothing here asks libvirt; what has to be known comes
from the domain's XML, from /proc, and from what was learnt of this host before.

The answer to a hook has ``xml``, the domain's XML with what is to be in it, or ``veto``, one sentence for whoever
asked for the migration, or neither.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from qmpfilter import __version__
from qmpfilter.daemon.control import Request
from qmpfilter.daemon.ingress import Front
from qmpfilter.daemon.redirects import Redirects
from qmpfilter.daemon.reports import new_name
from qmpfilter.daemon.restoring import check_image
from qmpfilter.daemon.roster import Roster, Wanted
from qmpfilter.daemon.sessions import Stage
from qmpfilter.doctor.gather import gather
from qmpfilter.errors import HostError, PolicyError, QmpfilterError
from qmpfilter.filter.policy import Mode, Policy
from qmpfilter.libvirt import arrival
from qmpfilter.libvirt.arrival import Arrival
from qmpfilter.libvirt.domain import DomainXml
from qmpfilter.libvirt.incoming import Incoming, find_incoming, is_loopback
from qmpfilter.libvirt.metadata import NAMESPACE, DomainPolicy
from qmpfilter.relay.address import TcpAddress
from qmpfilter.verdict.facts import HostFacts

__all__ = ["Hooks"]

_log: Final = logging.getLogger(__name__)

_Answer = dict[str, Any]

# Where these must be filtered, they are refused if they cannot be. An image is no migration: one that is too long to
# be looked at in time must still be restored.
_MIGRATIONS: Final = (("migrate", "begin"), ("started", "begin"))


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
        # Sessions by the domains that are about to arrive.
        self._announced: dict[str, str] = {}
        self._operations: dict[tuple[str, str], Callable[[DomainXml, str], Awaitable[_Answer]]] = {
            ("migrate", "begin"): self._announce,
            ("started", "begin"): self._put_before,
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
        try:
            domain = DomainXml(xml)
            if domain.name != name:
                raise HostError(f"the XML of {domain.name!r} came for {name!r}")
            return await self._operations[operation](domain, request.peer)
        except PolicyError as error:
            return self._veto(name, error)
        except QmpfilterError as error:
            if self._roster.config.ingress.required and operation in _MIGRATIONS:
                return self._veto(name, error)
            _log.warning("domain %s, %s: %s", name, operation[0], error)
            return {}

    def _veto(self, name: str, error: QmpfilterError) -> _Answer:
        _log.warning("domain %s is refused: %s", name, error)
        return {"veto": str(error)}

    # --- operations ----------------------------------------------------------------------------

    async def _announce(self, domain: DomainXml, _: str) -> _Answer:
        """A domain is about to arrive: what the session will be, so that its metadata can say so."""
        if self._is_off:
            return {}
        self._policy(domain, HostFacts())
        self._look()
        name = self._announced[domain.uuid] = new_name()
        coming = Arrival(
            session=name,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
            version=__version__,
            records=str(self._roster.config.records_directory(name)),
        )
        return {"xml": domain.with_element(coming.element())}

    async def _put_before(self, domain: DomainXml, peer: str) -> _Answer:
        """Its QEMU runs: if it waits for the guest, the source is to come here first."""
        incoming = await asyncio.to_thread(find_incoming, domain.uuid, domain.ports, domain.paths)
        announced = self._announced.pop(domain.uuid, "")
        if incoming is None:
            return {}
        await self._redirects.vacate(incoming.listens)
        if not incoming.listens:
            if announced:
                raise HostError("its QEMU listens nowhere: a tunnelled migration goes past every filter")
            # It is restored from a file.
            return {}
        if self._is_off and not self._unreachable(incoming):
            return {}
        policy = self._policy(domain, await self._known())
        config, name = self._roster.config, self._session_of(domain) or new_name()
        with Front(incoming, config.ingress.addresses, nft=config.ingress.nft) as front:
            async with self._redirects.leading(name, domain.uuid, front.redirect, config.waits.source):
                session = await self._roster.start(
                    Wanted(
                        listen=front.listening,
                        connect=front.connect,
                        policy=policy,
                        waits=config.waits,
                        asked_by=f"libvirt's hook, {peer}",
                        session=name,
                        name=domain.name,
                        uuid=domain.uuid,
                        keep_records=True,
                        redirected=0 if front.redirect is None else front.redirect.port,
                    )
                )
            front.keep()
        _log.info(
            "domain %s: its source comes to %s, session %s",
            domain.name, front.listening.shown, session.origin.session, extra={"session": session.origin.session},
        )  # fmt: skip
        return {}

    async def _check_image(self, domain: DomainXml, _: str) -> _Answer:
        """An image is about to be restored: whether this host takes what is in it."""
        if self._is_off:
            return {}
        self._look()
        policy = self._policy(domain, await self._known())
        await asyncio.to_thread(check_image, domain.uuid, policy)
        return {}

    async def _forget(self, domain: DomainXml, _: str) -> _Answer:
        """Its QEMU is gone: nobody will come any more."""
        self._announced.pop(domain.uuid, None)
        for session in self._roster.running():
            if session.origin.uuid == domain.uuid and session.stage in (Stage.STARTING, Stage.WAITING):
                self._roster.stop(session.origin.session)
        self._redirects.forget(domain.uuid)
        return {}

    # --- what they need ------------------------------------------------------------------------

    def _session_of(self, domain: DomainXml) -> str:
        """The name that its metadata promises, empty where that tells of an earlier arrival."""
        told = Arrival.of(domain.attributes(arrival.NAMESPACE) or {})
        here = told is not None and told.host == socket.gethostname() and self._roster.is_free(told.session)
        return told.session if told is not None and here else ""

    @staticmethod
    def _unreachable(incoming: Incoming) -> bool:
        """No source reaches its QEMU but by way of this daemon."""
        return any(isinstance(one, TcpAddress) and is_loopback(one) for one in incoming.listens)

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
