# SPDX-License-Identifier: GPL-2.0-or-later
"""The filters at the other ends of a relay's connections: agreed with before a byte of the stream passes.

:class:`Outgoing` connects to the one before the destination, :class:`Incoming` listens for the one after the source;
to the relay between them they look like a destination and a listening socket.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import queue
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from qmpfilter import __version__
from qmpfilter.errors import HostError, PolicyError, QmpfilterError, StreamError
from qmpfilter.filter.gate import Gate
from qmpfilter.filter.policy import Mode
from qmpfilter.relay.address import Destination, Listening, PairAddress, TcpAddress, tune
from qmpfilter.relay.channel import FIRST_BYTES, first_bytes
from qmpfilter.relay.deadline import Deadline
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.pair_protocol import FORMATS, NATIVE, SPOKEN, Answer, Hello, Inbox, agreed, refusal
from qmpfilter.relay.relay import Relay
from qmpfilter.relay.storage import NO_STORAGE, Storage
from qmpfilter.relay.tls import Secured, TlsEnd, contexts, secure
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.wire.framing import TLS_HANDSHAKE

__all__ = ["Encryption", "Incoming", "Link", "Outgoing", "Pair", "Pairing", "check_certificates"]

_log: Final = logging.getLogger(__name__)

# Connections that have not said yet what they are; more wait in the kernel.
_MOST_STRANGERS: Final = 64


class Encryption(StrEnum):
    """Which connections between two filters are TLS's."""

    AUTO = "auto"
    """Those of TCP to another host: not of a unix socket, nor of the loopback."""
    ALWAYS = "always"
    """All of TCP."""
    NEVER = "never: guests' memory passes unencrypted"
    """None."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """How filters meet.

    :param encryption: which connections are TLS's
    :param pki: directory of certificates, in the layout of libvirt's
    :param domain: the guest's uuid, where it is known; a guest that is told to be another is refused
    """

    encryption: Encryption = Encryption.AUTO
    pki: Path = Path("/etc/pki")
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """A main channel that was agreed on.

    :param where: the address of the filter that accepted
    :param version: of the protocol
    :param program: the other filter's version
    :param secured: None if it is plain
    """

    where: str
    version: int
    program: str
    secured: Secured | None

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        tls = self.secured
        return {
            "address": self.where,
            "version": self.version,
            "program": self.program,
            "tls": None if tls is None else {"version": tls.version, "cipher": tls.cipher, "subject": tls.subject},
        }


def check_certificates(listen: object, connect: object, pairing: Pairing) -> None:
    """Before anything is begun: whether this host has what its addresses ask for.

    :raises HostError: no; says which file
    """
    for address, server in ((listen, True), (connect, False)):
        inner = address.inner if isinstance(address, PairAddress) else None
        if isinstance(inner, TcpAddress) and _is_tls(inner.host, pairing):
            contexts(pairing.pki, server=server)


class Pair:
    """The other filters of one migration: on one side of its relay, on both, or none.

    :param gate: learns what the one at the destination tells, and converts for the one at the source
    :param is_off: asked whether everything passes as it is
    :param domain: asked for the guest's uuid where `pairing` does not tell it
    """

    def __init__(
        self,
        pairing: Pairing,
        waits: Waits,
        gate: Gate,
        is_off: Callable[[], bool],
        domain: Callable[[], str] = lambda: "",
    ) -> None:
        self._pairing = pairing
        self._waits = waits
        self._gate = gate
        self._is_off = is_off
        self._domain = domain
        self._outgoing: Outgoing | None = None
        self._incoming: list[Incoming] = []

    @property
    def links(self) -> dict[str, Link]:
        """The filters that were agreed with, by the side where they are."""
        found = {"source": next((one.link for one in self._incoming if one.link), None)}
        found["destination"] = None if self._outgoing is None else self._outgoing.link
        return {side: link for side, link in found.items() if link is not None}

    def relay(self, destination: Destination, storage: Storage = NO_STORAGE) -> Relay:
        """What passes the migration on to a destination.

        :param storage: which connections are for the guest's disks, where no other filter is met
        """
        if not isinstance(destination, PairAddress):
            return Relay(destination.connect, self._gate, self._waits, storage=storage)
        self._outgoing = Outgoing(
            destination, self._pairing, self._waits, domain=self._domain, heard=self._gate.learn
        )
        return Relay(self._outgoing.connect, self._gate, self._waits, paired=True)

    def welcoming(
        self, listen: Listening, sockets: Sequence[socket.socket], is_free: Callable[[], bool]
    ) -> list[socket.socket]:
        """What the relay listens on.

        :param sockets: that listen at the address
        """
        if not isinstance(listen, PairAddress):
            return list(sockets)
        self._incoming = [
            Incoming(
                one, listen, self._pairing, self._waits,
                formats=self._formats, facts=self._gate.policy.facts, is_free=is_free,
            )
            for one in sockets
        ]  # fmt: skip
        return list(self._incoming)

    def _formats(self) -> tuple[str, ...]:
        if self._gate.policy.mode in (Mode.OFF, Mode.OBSERVE) or self._is_off():
            return tuple(NATIVE if one == "svm2" else one for one in self._gate.policy.facts.formats)
        return FORMATS


class Outgoing:
    """Connections to the filter before the destination.

    :param domain: asked for the guest's uuid, empty if it is not known
    :param heard: is told the destination's facts, and whether native svm2 may be sent, before the stream begins; what
        it raises ends the migration
    :ivar link: the main channel, once it was agreed on
    """

    def __init__(
        self,
        address: PairAddress,
        pairing: Pairing,
        waits: Waits,
        *,
        domain: Callable[[], str],
        heard: Callable[[HostFacts, bool], None],
    ) -> None:
        self.link: Link | None = None
        self._heard = heard
        self._address = address
        self._pairing = pairing
        self._waits = waits
        self._domain = domain
        self._token = secrets.token_hex(16)

    def connect(self, deadline: Deadline, _source: socket.socket | None = None) -> socket.socket:
        """A connection on which the stream may begin; the first one is the main channel.

        :raises PolicyError: the other filter refuses this migration, or what it announced forbids it
        :raises HostError: it cannot be reached, is none, or does not agree
        """
        raw = self._address.inner.connect(deadline)
        end = raw
        try:
            tune(raw)
            if _is_tls(_peer(raw), self._pairing):
                assert isinstance(self._address.inner, TcpAddress)
                context = contexts(self._pairing.pki, server=False)
                name, linger = self._address.inner.host, self._waits.linger
                end = secure(raw, context, deadline, str(self._address), name=name, linger=linger)
            self._agree(end, deadline)
        except (StreamError, OSError) as error:
            end.close()
            why = error.strerror or error if isinstance(error, OSError) else error
            raise HostError(f"{self._address}: no filter to agree with: {why}") from error
        except BaseException:
            end.close()
            raise
        return end

    def _agree(self, end: socket.socket, deadline: Deadline) -> None:
        domain = self._pairing.domain or self._domain()
        # QEMU has zeros for a guest that was given none.
        domain = domain if domain.strip("0-") else ""
        hello = Hello(SPOKEN, __version__, self.link is None, self._token, domain)
        end.settimeout(deadline.remaining())
        end.sendall(hello.to_bytes())
        answer = Answer.from_json(_message(end, deadline))
        end.settimeout(None)
        if hello.main:
            self.link = Link(str(self._address), answer.version, answer.program, _secured(end))
            self._heard(answer.facts or HostFacts(), NATIVE in answer.formats)


class Incoming(socket.socket):
    """Where the filter after the source comes: a listening socket whose :meth:`accept` gives connections that were
    agreed on. Strangers never get that far, however many they are.

    The main channel is given when the stream has begun to come; before that another may take its place.

    :param listener: where it comes; closed with this
    :param formats: asked for the forms of nested state that may be sent here
    :param facts: this host's
    :param is_free: asked whether there is no migration yet
    :ivar link: the main channel, once it was agreed on
    """

    def __init__(
        self,
        listener: socket.socket,
        where: PairAddress,
        pairing: Pairing,
        waits: Waits,
        *,
        formats: Callable[[], tuple[str, ...]],
        facts: HostFacts,
        is_free: Callable[[], bool],
    ) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        # Readable when there is something to accept: the kernel gives it a name that nobody else has, and whoever
        # connects to it all the same gets nothing.
        self.bind("")
        self.listen()
        self.link: Link | None = None
        self._listener = listener
        self._where = where
        self._pairing = pairing
        self._waits = waits
        self._formats = formats
        self._facts = facts
        self._is_free = is_free
        self._token = ""
        self._begun = threading.Event()
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._agreed: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        threading.Thread(target=self._welcome, name="welcome", daemon=True).start()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that was agreed on.

        :raises BlockingIOError: there is none
        """
        super().accept()[0].close()
        try:
            return self._agreed.get_nowait(), ""
        except queue.Empty:
            raise BlockingIOError from None

    def close(self) -> None:
        """Welcome nobody any more."""
        with contextlib.suppress(OSError):
            # Whoever waits in accept(2) wakes up.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        super().close()
        with contextlib.suppress(queue.Empty):
            while True:
                self._agreed.get_nowait().close()

    def _welcome(self) -> None:
        self._listener.setblocking(True)
        with contextlib.suppress(OSError, ValueError):
            while True:
                self._free.acquire()
                raw, address = self._listener.accept()
                who = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a process of this host"
                threading.Thread(target=self._greet, args=(raw, who), name="greet", daemon=True).start()

    def _greet(self, raw: socket.socket, who: str) -> None:
        end = raw
        deadline = Deadline(self._waits.hello, "agreeing with the other filter")
        try:
            tune(raw)
            raw.settimeout(deadline.remaining())
            if raw.recv(1, socket.MSG_PEEK) == bytes([TLS_HANDSHAKE]):
                context = contexts(self._pairing.pki, server=True)
                end = secure(raw, context, deadline, who, name=None, linger=self._waits.linger)
            elif _is_tls(_peer(raw), self._pairing):
                raise HostError("it does not speak TLS, which a filter on another host has to")
            self._agree(end, deadline)
        except (QmpfilterError, OSError) as error:
            why = error.strerror or error if isinstance(error, OSError) else error
            _log.warning("%s: a connection of %s was closed: %s", self._where, who, why)
            end.close()
        finally:
            self._free.release()

    def _agree(self, end: socket.socket, deadline: Deadline) -> None:
        """:raises QmpfilterError: no, and why; the other filter was told if it is one"""
        values = _message(end, deadline)
        try:
            hello = Hello.from_json(values)
            version = agreed(hello)
            self._check(hello, deadline)
        except QmpfilterError as error:
            end.settimeout(deadline.remaining())
            end.sendall(refusal(error))
            raise
        try:
            answer = Answer(version, __version__)
            if hello.main:
                answer = replace(answer, formats=self._formats(), facts=self._facts)
            end.settimeout(deadline.remaining())
            end.sendall(answer.to_bytes())
            end.settimeout(None)
            if hello.main and len(first_bytes(end, deadline.remaining()) or b"") < FIRST_BYTES:
                raise HostError("it was agreed with, and then sent nothing")
        except BaseException:
            if hello.main:
                with self._lock:
                    self._token = ""
            raise
        if hello.main:
            self.link = Link(str(self._where), version, hello.program, _secured(end))
        self._agreed.put(end)
        self._begun.set()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
                knock.connect(self.getsockname())
        except OSError:
            # Nobody accepts any more.
            end.close()

    def _check(self, hello: Hello, deadline: Deadline) -> None:
        expected = self._pairing.domain
        if expected and hello.domain and hello.domain.lower() != expected.lower():
            raise PolicyError(f"the guest {hello.domain} was to come, and {expected} is expected here")
        with self._lock:
            if hello.main and (self._token or not self._is_free()):
                raise HostError("another migration is under way here already")
            if hello.main:
                self._token = hello.token
            elif hello.token != self._token:
                raise HostError("an extra channel came of a migration that is not under way here")
        # It may be faster than the first bytes of its main channel.
        if not hello.main and not self._begun.wait(deadline.remaining()):
            raise HostError("an extra channel came, and no byte of its main channel")


def _message(end: socket.socket, deadline: Deadline) -> dict[str, Any]:
    """:raises HostError: none comes in time
    :raises StreamError: it is none
    """
    inbox = Inbox()
    while wanted := inbox.wanted:
        end.settimeout(deadline.remaining())
        data = end.recv(wanted)
        if not data:
            raise HostError("the other side ended the connection before it had said that it is a filter")
        inbox.receive_data(data)
    return inbox.message()


def _peer(raw: socket.socket) -> str:
    """The peer's address; empty if it is not one of a network."""
    return str(raw.getpeername()[0]) if raw.family in (socket.AF_INET, socket.AF_INET6) else ""


def _is_tls(host: str, pairing: Pairing) -> bool:
    """Whether a connection with a host has to be; without a name it is this one."""
    if pairing.encryption is not Encryption.AUTO:
        return bool(host) and pairing.encryption is Encryption.ALWAYS
    return bool(host) and not _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _secured(end: socket.socket) -> Secured | None:
    return end.secured if isinstance(end, TlsEnd) else None
