# SPDX-License-Identifier: GPL-2.0-or-later
"""What only a server does: forget its history, ask who one is, be cut off, or be another one than it should."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from qmpfilter.cluster.address import open_store
from qmpfilter.errors import ChangedError, StoreAwayError
from tests.helpers.etcd import HOST, Certificates, Etcd, Line

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("etcd") / "certificates")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd") / "server", certificates) as server:
        yield server


def test_compaction_invalidates_no_cursor(server: Etcd, tmp_path: Path) -> None:
    store = open_store(f"{server.address}/{tmp_path.name}", server.access)
    first = store.put_always("n", b"0")
    cursor = store.watch("", None, 0).cursor
    last = store.put_always("other", b"")
    server.ctl("compact", last.revision)
    server.ctl("defrag")
    changed, now = store.watch("", cursor, 0)
    assert changed
    assert not store.watch("", now, 0).changed
    store.put("n", b"1", unless_changed=first.revision)
    assert store.watch("", now, 0).changed


def test_a_store_keeps_to_its_namespace(server: Etcd, tmp_path: Path) -> None:
    mine = open_store(f"{server.address}/{tmp_path.name}/a", server.access)
    other = open_store(f"{server.address}/{tmp_path.name}/ab", server.access)
    cursor = mine.watch("", None, 0).cursor
    other.put_always("n", b"")
    server.ctl("put", f"{tmp_path.name}/a/not a key", "")
    assert mine.entries("") == []
    server.ctl("put", f"{tmp_path.name}/a/n", "theirs")
    assert [entry.data for entry in mine.entries("")] == [b"theirs"]
    assert mine.watch("", cursor, 0).changed


def test_entries_beyond_a_message_of_grpc(server: Etcd, tmp_path: Path) -> None:
    store = open_store(f"{server.address}/{tmp_path.name}", server.access)
    for number in range(5):
        store.put_always(f"large/{number}", bytes(1 << 20))
    assert [len(entry.data) for entry in store.entries("large")] == [1 << 20] * 5


def test_a_line_that_is_cut(server: Etcd, tmp_path: Path) -> None:
    with Line.to(server.port) as line:
        address = f"etcd:https://{HOST}:{line.port}/{tmp_path.name}"
        store = open_store(address, replace(server.access, seconds=0.2))
        patient = open_store(address, server.access)
        before = patient.put_always("n", b"0")
        cursor = patient.watch("", None, 0).cursor
        line.cut()
        with pytest.raises(StoreAwayError, match=r"does not answer: .*: no answer in time"):
            store.get("n")
        with pytest.raises(StoreAwayError):
            store.put("n", b"1", unless_changed=before.revision)
        # Who is on the other side goes on.
        elsewhere = open_store(f"{server.address}/{tmp_path.name}", server.access)
        elsewhere.put_always("n", b"2")
        line.mend()
        assert patient.watch("", cursor, 0).changed
        assert patient.get("n") == elsewhere.get("n")
        with pytest.raises(ChangedError):
            patient.put("n", b"3", unless_changed=before.revision)


def test_the_next_endpoint_answers(server: Etcd, tmp_path: Path) -> None:
    with Line.to(server.port) as line, Line.to(server.port) as other:
        hosts = f"{HOST}:1,{HOST}:{line.port},{HOST}:{other.port}"
        store = open_store(f"etcd:https://{hosts}/{tmp_path.name}", replace(server.access, seconds=2.0))
        entry = store.put("n", b"0", unless_changed=None)
        line.cut()
        assert store.get("n") == entry
        entry = store.put("n", b"1", unless_changed=entry.revision)
        line.mend()
        other.cut()
        # Nobody knows whether this was heard, so it is not said again to another.
        with pytest.raises(StoreAwayError):
            store.put("n", b"2", unless_changed=entry.revision)
        assert store.get("n") is not None


def test_servers_and_hosts_know_each_other(server: Etcd, certificates: Certificates, tmp_path: Path) -> None:
    another = Certificates(tmp_path / "another")
    for ca in (None, another.ca):
        with pytest.raises(StoreAwayError, match=r"The etcd server does not answer: .*certificate verify failed"):
            open_store(server.address, replace(server.access, ca=ca)).get("n")
    for certificate in (None, another.client):
        with pytest.raises(StoreAwayError, match="does not answer"):
            open_store(server.address, replace(server.access, certificate=certificate)).get("n")
    with pytest.raises(StoreAwayError, match="does not answer"):
        open_store(server.address.replace("https", "http")).get("n")
    apart = replace(server.access, certificate=certificates.client, key=certificates.client.with_suffix(".key"))
    assert open_store(server.address, apart).get("n") is None


def test_passwords(certificates: Certificates, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("right\n")
    with Etcd(tmp_path / "server", certificates, passwords=True) as server:
        for command in (
            "user add root:top",
            "user grant-role root root",
            "role add hosts",
            "role grant-permission hosts readwrite --prefix=true qmpfilter/",
            "user add host:right",
            "user grant-role host hosts",
            "auth enable",
        ):
            server.ctl(*command.split())
        access = replace(server.access, user="host", password_file=password)
        store = open_store(server.address, access)
        entry = store.put("n", b"0", unless_changed=None)
        lease = store.lease(60)
        store.put_always("hosts/a", b"", lease)
        # Tokens are gone when it is started again, and when users change.
        server.stop()
        server.start()
        entry = store.put("n", b"1", unless_changed=entry.revision)
        server.ctl("user", "add", "one:more", user="root:top")
        assert lease.keep_alive()
        assert store.watch("", None, 0).changed
        assert store.get("n") == entry
        with pytest.raises(StoreAwayError, match="refuses: etcdserver: permission denied"):
            open_store(f"{server.address}/other", access).get("n")
        with pytest.raises(StoreAwayError, match="refuses: etcdserver: user name is empty"):
            open_store(server.address, server.access).get("n")
        password.write_text("wrong\n")
        with pytest.raises(StoreAwayError, match="refuses: etcdserver: authentication failed") as refused:
            open_store(server.address, access).get("n")
        assert "wrong" not in str(refused.value)


class Odd(BaseHTTPRequestHandler):
    """Answers always the same."""

    answer: bytes

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    "answer",
    [b"", b"no", b"\xff", b"5", b"null", b"[1]", b'{"kvs": 5}', b'{"kvs": [5]}', b'{"kvs": [{}]}',
     b'{"header": 1}', b'{"kvs": [{"key": "?"}]}', b'{"kvs": [{"key": "", "mod_revision": "x"}]}',
     b'{"succeeded": true}', b'{"ID": []}'],
)  # fmt: skip
def test_a_server_of_something_else(answer: bytes) -> None:
    odd = type("Odd", (Odd,), {"answer": answer})
    with HTTPServer((HOST, 0), odd) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        store = open_store(f"etcd:http://{HOST}:{server.server_port}")
        for act in (
            lambda: store.watch("", None, 0),
            lambda: store.lease(1),
            lambda: store.put_always("n", b""),
        ):
            with pytest.raises(StoreAwayError, match=f"{server.server_port} does not answer as etcd does"):
                act()
        server.shutdown()
