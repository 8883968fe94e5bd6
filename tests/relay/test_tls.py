# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS between two filters: whose certificate is taken, and that an end is told from a cut."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from qmpfilter.errors import HostError
from qmpfilter.relay.deadline import Deadline
from qmpfilter.relay.tls import TlsEnd, contexts, secure
from tests.helpers.migration import everything, exactly, sending
from tests.helpers.pki import Authority

SECONDS = 20.0
LINGER = 0.2


class Hosts(NamedTuple):
    """Directories with certificates."""

    good: Path
    other: Path
    expired: Path
    elsewhere: Path


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Hosts:
    root = tmp_path_factory.mktemp("pki")
    ours, theirs = Authority(root / "ours"), Authority(root / "theirs", "somebody")
    return Hosts(
        ours.host(root / "good"),
        theirs.host(root / "other"),
        ours.host(root / "expired", days=-1),
        ours.host(root / "elsewhere", "DNS:elsewhere.example"),
    )


class Wire:
    """A connection between a client and a server, and what lies between them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.client, self.server = (stack.enter_context(end) for end in socket.socketpair())

    def shake(self, client: Path, server: Path, name: str = "localhost") -> tuple[TlsEnd, TlsEnd]:
        """Both ends, or the errors of those that fail."""

        def one(raw: socket.socket, directory: Path, named: str | None) -> TlsEnd:
            context = contexts(directory, server=named is None)
            who = "the client" if named is None else "the server"
            try:
                end = secure(raw, context, Deadline(SECONDS, "the test"), who, name=named, linger=LINGER)
            except HostError:
                raw.close()
                raise
            end.settimeout(SECONDS)
            return end

        with ThreadPoolExecutor() as pool:
            ends = [pool.submit(one, self.client, client, name), pool.submit(one, self.server, server, None)]
        errors = [end.exception() for end in ends]
        for end, error in zip(ends, errors, strict=True):
            if error is None:
                self._stack.callback(end.result().close)
        for error in errors:
            if error is not None:
                raise error
        return ends[0].result(), ends[1].result()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with ExitStack() as stack:
        yield Wire(stack)


def test_who_the_peer_is(wire: Wire, hosts: Hosts) -> None:
    client, server = wire.shake(hosts.good, hosts.good)
    assert client.secured.version == server.secured.version == "TLSv1.3"
    assert client.secured.cipher == server.secured.cipher != ""
    assert (client.secured.subject, server.secured.subject) == ("O=qmpfilter,CN=server", "O=qmpfilter,CN=client")


@pytest.mark.parametrize("size", [1, 5, 1 << 14, (1 << 21) + 3])
def test_each_way_ends_on_its_own(wire: Wire, hosts: Hosts, size: int) -> None:
    client, server = wire.shake(hosts.good, hosts.good)
    there, back = os.urandom(size), os.urandom(size)
    sender = sending(client, there)
    assert exactly(server, size) == there
    sender.join(SECONDS)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    # The other way still is open.
    sender = sending(server, back)
    assert exactly(client, size) == back
    sender.join(SECONDS)
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


def test_what_was_written_before_the_end_was_closed_arrives(wire: Wire, hosts: Hosts) -> None:
    client, server = wire.shake(hosts.good, hosts.good)
    client.sendall(b"last words")
    closing = threading.Thread(target=client.close)
    closing.start()
    assert everything(server) == b"last words"
    server.close()
    closing.join(SECONDS)
    assert not closing.is_alive()


def test_much_both_ways_at_once(wire: Wire, hosts: Hosts) -> None:
    client, server = wire.shake(hosts.good, hosts.good)
    data = os.urandom(3 << 20)
    senders = [sending(client, data), sending(server, data)]
    with ThreadPoolExecutor() as pool:
        got = list(pool.map(lambda end: exactly(end, len(data)), (client, server)))
    assert got == [data, data]
    for sender in senders:
        sender.join(SECONDS)


@pytest.mark.parametrize("read", [lambda end: end.recv(9), lambda end: end.recv_into(bytearray(9)),
                                  lambda end: end.recvmsg_into([bytearray(9)])])  # fmt: skip
def test_without_close_notify_it_is_a_cut(wire: Wire, hosts: Hosts, read: Callable[[TlsEnd], object]) -> None:
    client, server = wire.shake(hosts.good, hosts.good)
    server.sendall(b"SHUT")
    assert exactly(client, 4) == b"SHUT"
    # Somebody between them ends the connection.
    wire.server.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionResetError, match="cut: it ended without TLS's close_notify"):
        read(client)


def test_also_when_one_way_has_ended(wire: Wire, hosts: Hosts) -> None:
    client, server = wire.shake(hosts.good, hosts.good)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    wire.server.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_what_somebody_slips_in_is_a_cut(wire: Wire, hosts: Hosts) -> None:
    client, server = wire.shake(hosts.good, hosts.good)
    server.sendall(b"SHUT")
    assert exactly(client, 4) == b"SHUT"
    wire.server.sendall(b"\x17\x03\x03\0\x14" + bytes(20))
    with pytest.raises(ConnectionResetError, match="TLS with the server failed: decryption failed or bad record mac"):
        client.recv(1)


@pytest.mark.parametrize(
    ("client", "server", "name", "said"),
    [
        ("good", "other", "localhost", "the certificate of the server does not hold: self-signed certificate"),
        ("good", "expired", "localhost", "the certificate of the server does not hold: certificate has expired"),
        ("good", "elsewhere", "localhost", "the certificate of the server does not hold: Hostname mismatch"),
        ("good", "elsewhere", "127.0.0.1", "the certificate of the server does not hold: IP address mismatch"),
        ("good", "good", "127.0.0.1", ""),
        ("elsewhere", "good", "localhost", ""),
    ],
)
def test_whose_certificate_the_client_takes(
    wire: Wire, hosts: Hosts, client: str, server: str, name: str, said: str
) -> None:
    if not said:
        wire.shake(getattr(hosts, client), getattr(hosts, server), name)
        return
    with pytest.raises(HostError, match=said):
        wire.shake(getattr(hosts, client), getattr(hosts, server), name)


def test_the_server_takes_no_expired_client(wire: Wire, hosts: Hosts) -> None:
    with pytest.raises(HostError, match="the certificate of the client does not hold: certificate has expired"):
        wire.shake(hosts.expired, hosts.good)


def test_the_server_takes_no_client_of_another_authority(wire: Wire, hosts: Hosts, tmp_path: Path) -> None:
    # It trusts the server, which does not trust it.
    mixed = tmp_path / "mixed"
    shutil.copytree(hosts.other, mixed)
    shutil.copy(hosts.good / "CA/cacert.pem", mixed / "CA/cacert.pem")
    with pytest.raises(HostError, match=r"the certificate of the client does not hold: .*certificate"):
        wire.shake(mixed, hosts.good)


def test_a_refused_client_hears_why(hosts: Hosts) -> None:
    """In TLS 1.3 the client's handshake is done before the server has looked at its certificate."""
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        with ThreadPoolExecutor() as pool:
            server = pool.submit(
                secure, theirs, contexts(hosts.good, server=True), Deadline(SECONDS, "the test"), "the client",
                name=None, linger=LINGER,
            )  # fmt: skip
            client = secure(
                ours, contexts(hosts.expired, server=False), Deadline(SECONDS, "the test"), "the server",
                name="localhost", linger=LINGER,
            )  # fmt: skip
            assert isinstance(server.exception(SECONDS), HostError)
        with pytest.raises(ConnectionResetError, match="did not accept this host's certificate: certificate expired"):
            client.recv(1)
        theirs.close()
        client.close()


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "http request"),
        (b"qmpfpair\0\0\0\2{}", "wrong version number|failed"),
        (b"", "ended"),
    ],
)
def test_a_client_that_speaks_no_tls(hosts: Hosts, first: bytes, said: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(first)
        ours.shutdown(socket.SHUT_WR)
        context = contexts(hosts.good, server=True)
        with pytest.raises(HostError, match=said):
            secure(theirs, context, Deadline(SECONDS, "the test"), "the client", name=None, linger=LINGER)


def test_a_client_without_a_certificate(hosts: Hosts) -> None:
    ours, theirs = socket.socketpair()
    plain = ssl.create_default_context(cafile=str(hosts.good / "CA/cacert.pem"))
    with ours, theirs, ThreadPoolExecutor() as pool:
        context = contexts(hosts.good, server=True)
        server = pool.submit(
            secure, theirs, context, Deadline(SECONDS, "the test"), "the client", name=None, linger=LINGER
        )
        with plain.wrap_socket(ours, server_hostname="localhost"), pytest.raises(HostError, match="no certificate"):
            server.result(SECONDS)


def test_a_client_of_an_older_tls(hosts: Hosts) -> None:
    ours, theirs = socket.socketpair()
    old = ssl.create_default_context(cafile=str(hosts.good / "CA/cacert.pem"))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with ours, theirs, ThreadPoolExecutor() as pool:
        context = contexts(hosts.good, server=True)
        server = pool.submit(
            secure, theirs, context, Deadline(SECONDS, "the test"), "the client", name=None, linger=LINGER
        )
        with pytest.raises(ssl.SSLError):
            old.wrap_socket(ours, server_hostname="localhost")
        with pytest.raises(HostError, match="TLS with the client failed: unsupported protocol"):
            server.result(SECONDS)


def test_a_silent_client_is_not_waited_for(hosts: Hosts) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(HostError, match=r"too|timed out"):
        secure(theirs, contexts(hosts.good, server=True), Deadline(0.05, "it"), "it", name=None, linger=LINGER)


@pytest.mark.parametrize(
    ("missing", "server"),
    [("CA/cacert.pem", True), ("libvirt/servercert.pem", True), ("libvirt/private/clientkey.pem", False)],
)
def test_a_file_that_is_missing_is_named(hosts: Hosts, tmp_path: Path, missing: str, server: bool) -> None:
    shutil.copytree(hosts.good, tmp_path / "host")
    (tmp_path / "host" / missing).unlink()
    with pytest.raises(HostError, match=f"{missing}: No such file"):
        contexts(tmp_path / "host", server=server)


def test_a_key_of_another_certificate(hosts: Hosts, tmp_path: Path) -> None:
    shutil.copytree(hosts.good, tmp_path / "host")
    shutil.copy(hosts.other / "libvirt/private/serverkey.pem", tmp_path / "host/libvirt/private/serverkey.pem")
    with pytest.raises(HostError, match="no certificate and its key without a password: KEY_VALUES_MISMATCH"):
        contexts(tmp_path / "host", server=True)
