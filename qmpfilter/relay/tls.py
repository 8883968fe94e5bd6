# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS 1.3 between two filters, certificates on both sides, given to a relay as a plain socket.

A relay polls, peeks, splices and half-closes its sockets, and reads and writes one from two threads; Python's
SSLSocket can do none of the first four, and OpenSSL not the last. So the relay gets one end of a socket pair, and two
threads carry bytes between the other end and the connection: a copy more, for a relay that knows nothing of TLS.

An end is TLS's close_notify, each way on its own. Without it the connection was cut, and :class:`TlsEnd` raises
ConnectionResetError where a socket would tell of an end.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qmpfilter.errors import HostError
from qmpfilter.relay.deadline import Deadline

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Secured", "TlsEnd", "contexts", "secure"]

_CHUNK: Final = 1 << 18
_AUTHORITY: Final = "CA/cacert.pem"
# Where libvirt has a host's certificate and key, as a server and as a client.
_OWN: Final = {
    True: ("libvirt/servercert.pem", "libvirt/private/serverkey.pem"),
    False: ("libvirt/clientcert.pem", "libvirt/private/clientkey.pem"),
}
_SHORT: Final = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
                 "stateOrProvinceName": "ST", "localityName": "L"}  # fmt: skip


def contexts(directory: Path, *, server: bool) -> ssl.SSLContext:
    """How this host speaks TLS.

    :param directory: of certificates, in the layout of libvirt's /etc/pki
    :param server: it accepts; otherwise it connects
    :raises HostError: a file is missing or cannot be used; says which
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        # Nothing is resumed, and a message that nobody asked for would come in the middle of the stream.
        context.num_tickets = 0
    authority, own, key = (directory / name for name in (_AUTHORITY, *_OWN[server]))
    for file in (authority, own, key):
        try:
            file.read_bytes()
        except OSError as error:
            raise HostError(f"TLS between filters needs {file}: {error.strerror or error}") from error
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise HostError(f"{authority} holds no certificate of an authority: {error.reason or error}") from error
    try:
        # With a password it would be asked for on a terminal.
        context.load_cert_chain(own, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise HostError(f"{own} and {key} are no certificate and its key without a password: {why}") from error
    return context


@dataclass(frozen=True, slots=True)
class Secured:
    """What protects a connection.

    :param subject: of the peer's certificate
    """

    version: str
    cipher: str
    subject: str


class TlsEnd(socket.socket):
    """The relay's end of a TLS connection. Closing it waits until all that was written is on its way."""

    def __init__(self, number: int, tunnel: _Tunnel, secured: Secured) -> None:
        super().__init__(fileno=number)
        self.secured = secured
        self._tunnel = tunnel

    def raise_if_cut(self) -> None:
        """At an end: whether it was one.

        :raises ConnectionResetError: the connection was cut
        """
        if self._tunnel.cut:
            raise ConnectionResetError(self._tunnel.cut)

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        if size and not data:
            self.raise_if_cut()
        return data

    def recv_into(self, buffer: Buffer, size: int = 0, flags: int = 0) -> int:
        count = super().recv_into(buffer, size, flags)
        if not count:
            self.raise_if_cut()
        return count

    def recvmsg_into(
        self, buffers: Iterable[Buffer], space: int = 0, flags: int = 0
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        got = super().recvmsg_into(buffers, space, flags)
        if not got[0]:
            self.raise_if_cut()
        return got

    def close(self) -> None:
        """Once."""
        if self.fileno() >= 0:
            super().close()
            self._tunnel.finish()


def secure(
    raw: socket.socket, context: ssl.SSLContext, deadline: Deadline, who: str, *, name: str | None, linger: float
) -> TlsEnd:
    """Shake hands, and begin to carry. `raw` is the tunnel's from here on; on an error the caller closes it.

    :param who: the peer, for messages
    :param name: that the peer's certificate has to have; None if this host accepts
    :param linger: seconds for what is on its way when the end is closed
    :raises HostError: one side does not accept the other's certificate, or this is no TLS
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=name is None, server_hostname=name)
    try:
        while not _shook_hands(tls, raw, outgoing, deadline, who):
            raw.settimeout(deadline.remaining())
            data = raw.recv(_CHUNK)
            if not data:
                raise HostError(f"{who} ended the connection in TLS's handshake")
            incoming.write(data)
    except OSError as error:
        raise HostError(f"{who}: TLS's handshake failed: {error.strerror or error}") from error
    raw.settimeout(None)
    cipher, certificate = tls.cipher(), tls.getpeercert()
    secured = Secured(tls.version() or "", cipher[0] if cipher else "", _subject(certificate or {}))
    inner, given = socket.socketpair()
    tunnel = _Tunnel((raw, inner), tls, (incoming, outgoing), who, linger)
    end = TlsEnd(given.detach(), tunnel, secured)
    tunnel.start()
    return end


def _shook_hands(
    tls: ssl.SSLObject, raw: socket.socket, outgoing: ssl.MemoryBIO, deadline: Deadline, who: str
) -> bool:
    """:raises HostError: it failed"""
    failed: ssl.SSLError | None = None
    done = False
    try:
        tls.do_handshake()
        done = True
    except ssl.SSLWantReadError:
        pass
    except ssl.SSLError as error:
        failed = error
    # The alert that tells the other side as well.
    with contextlib.suppress(*((OSError,) if failed else ())):
        raw.settimeout(deadline.remaining())
        raw.sendall(outgoing.read())
    if failed is not None:
        raise HostError(_problem(failed, who)) from failed
    return done


class _Tunnel:
    """Carries between a TLS connection and the relay.

    :ivar cut: why the connection ended without close_notify; empty if it did not
    """

    def __init__(
        self,
        ends: tuple[socket.socket, socket.socket],
        tls: ssl.SSLObject,
        memory: tuple[ssl.MemoryBIO, ssl.MemoryBIO],
        who: str,
        linger: float,
    ) -> None:
        self.cut = ""
        self._raw, self._inner = ends
        self._tls = tls
        self._incoming, self._outgoing = memory
        self._who = who
        self._linger = linger
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("encrypt", self._encrypt), ("decrypt", self._decrypt))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """The relay has closed its end: what it wrote goes, and what still comes is dropped, so that no reset takes
        from the peer what it has not read."""
        deadline = Deadline(self._linger, "the end of a TLS connection")
        with contextlib.suppress(HostError):
            for thread in self._threads:
                thread.join(deadline.remaining())
        for end in (self._raw, self._inner):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._raw.close()
        self._inner.close()

    def _encrypt(self) -> None:
        buffer = memoryview(bytearray(_CHUNK))
        try:
            while count := self._inner.recv_into(buffer):
                rest = buffer[:count]
                with self._lock:
                    while rest:
                        rest = rest[self._tls.write(rest) :]
                    data = self._outgoing.read()
                self._raw.sendall(data)
            with self._lock:
                # Of its two halves only the first is wanted, which does not wait; decrypting leaves nothing behind
                # that the second could stumble over.
                with contextlib.suppress(ssl.SSLWantReadError):
                    self._tls.unwrap()
                data = self._outgoing.read()
            self._raw.sendall(data)
            self._raw.shutdown(socket.SHUT_WR)
        except OSError:
            # What the peer said before is still to be heard; why it is gone, decrypting finds out.
            with contextlib.suppress(OSError):
                self._inner.shutdown(socket.SHUT_RD)

    def _decrypt(self) -> None:
        buffer = memoryview(bytearray(_CHUNK))
        wanted, ended, count = True, False, 0
        try:
            while not ended:
                data, ended = self._decrypted(buffer[:count])
                if data and wanted:
                    try:
                        self._inner.sendall(data)
                    except OSError:
                        wanted = False
                if not ended and not (count := self._raw.recv_into(buffer)):
                    raise ConnectionResetError("it ended without TLS's close_notify")
        except OSError as error:
            self.cut = f"the connection with {self._who} was cut: {error.strerror or error}"
        with contextlib.suppress(OSError):
            self._inner.shutdown(socket.SHUT_WR)

    def _decrypted(self, data: memoryview) -> tuple[bytes, bool]:
        """All that can be decrypted by now, and whether that was the last."""
        parts: list[bytes] = []
        with self._lock:
            self._incoming.write(data)
            try:
                while part := self._tls.read(_CHUNK):
                    parts.append(part)
            except ssl.SSLWantReadError:
                return b"".join(parts), False
            except ssl.SSLZeroReturnError:
                pass
            except ssl.SSLError as error:
                self.cut = _problem(error, self._who)
        return b"".join(parts), True


def _problem(error: ssl.SSLError, who: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {who} does not hold: {error.verify_message.rstrip('.')}"
    reason = error.reason or str(error)
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return f"{who} showed no certificate"
    _, alert, said = reason.partition("ALERT_")
    words = (said or reason).replace("_", " ").lower()
    if alert and ("certificate" in words or words == "unknown ca"):
        return f"{who} did not accept this host's certificate: {words}"
    return f"TLS with {who} failed: {words}"


def _subject(certificate: Mapping[str, Any]) -> str:
    names = [one for names in certificate.get("subject", ()) for one in names]
    return ",".join(f"{_SHORT.get(key, key)}={value}" for key, value in names)
