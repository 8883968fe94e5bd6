# SPDX-License-Identifier: GPL-2.0-or-later
"""Real etcd servers of the tests' own, the certificates they are known by, and a line to them that can be cut."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from qmpfilter.cluster.address import Access
from tests.lab.inhost.waiting import wait_until

__all__ = ["Certificates", "Etcd", "Line"]

SECONDS = 60.0
HOST = "127.0.0.1"
# Below those that the kernel gives to connections: a server that is started again finds its own free.
PORTS = range(20000, 32000)


class Certificates:
    """A CA in a directory, and what it signed: `server` and `client`, each a file with certificate and key.

    :param also: under which address the server is known besides its own
    """

    def __init__(self, directory: Path, *also: str) -> None:
        directory.mkdir()
        self.ca, ca_key = directory / "ca.pem", directory / "ca.key"
        # Python takes no authority without this, from 3.13 on.
        signs = ("-addext", "keyUsage=critical,keyCertSign")
        _openssl("-keyout", ca_key, "-out", self.ca, "-subj", f"/CN={directory.name}", *signs)
        self.server, self.client = directory / "server.pem", directory / "client.pem"
        for file in (self.server, self.client):
            key = file.with_suffix(".key")
            names = ",".join(f"IP:{address}" for address in (HOST, *also))
            extensions = ("-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE")
            _openssl(
                "-keyout",
                key,
                "-out",
                file,
                "-subj",
                f"/CN={file.stem}",
                "-CA",
                self.ca,
                "-CAkey",
                ca_key,
                *extensions,
            )
            file.write_text(file.read_text() + key.read_text())


class Etcd:
    """A server that speaks TLS only, and knows its clients by their certificates. Use as a context manager.

    :param passwords: it knows them by these instead: over its gateway it takes no other user from a certificate
    """

    def __init__(self, directory: Path, certificates: Certificates, *, passwords: bool = False) -> None:
        directory.mkdir()
        self._directory = directory
        self._certificates = certificates
        self._client = None if passwords else certificates.client
        self.access = Access(ca=certificates.ca, certificate=self._client, seconds=20.0)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        while not self.port:
            port = random.choice(PORTS)
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind((HOST, port))
                self.port = port
            if self.port and not self._started():
                self.port = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def address(self) -> str:
        return f"etcd:https://{HOST}:{self.port}"

    @property
    def runs(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """With the data that it had."""
        assert self._started(), self.log()

    def kill(self) -> None:
        """As a host that goes down."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As a service that is stopped: all that it knows is in its files."""
        self._end(signal.SIGTERM)

    def ctl(self, *arguments: str, user: str = "") -> str:
        """What etcdctl says."""
        client = [f"--cert={self._client}", f"--key={self._client}"] if self._client else []
        done = subprocess.run(
            [
                "etcdctl", f"--endpoints=https://{HOST}:{self.port}", f"--cacert={self._certificates.ca}",
                *client, *([f"--user={user}"] if user else []), *arguments,
            ],
            env={**os.environ, "ETCDCTL_API": "3"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout.decode()
        return done.stdout.decode()

    def processor_seconds(self) -> float:
        """That it has used since it was started."""
        assert self._process is not None
        used = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")

    def metrics(self) -> dict[str, float]:
        """What it counts, by name with labels."""
        with requests.Session() as session:
            session.trust_env = False
            session.verify, session.cert = str(self._certificates.ca), str(self._certificates.client)
            lines = session.get(f"https://{HOST}:{self.port}/metrics", timeout=SECONDS).text.splitlines()
        rows = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(SECONDS)
            self._process = None

    def _started(self) -> bool:
        url, certificate = f"https://{HOST}:{self.port}", self._certificates.server
        # Nobody but this one member speaks there.
        peer = f"unix://{self._directory.name}:{self.port}"
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "etcd", f"--data-dir={self._directory / 'data'}",
                    f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
                    f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster=default={peer}",
                    f"--cert-file={certificate}", f"--key-file={certificate}",
                    *([f"--trusted-ca-file={self._certificates.ca}", "--client-cert-auth"] if self._client else []),
                    # A lone member wins its election; the shortest lease is one and a half of these.
                    "--heartbeat-interval=50", "--election-timeout=500",
                    # Its passwords are no secrets.
                    "--bcrypt-cost=4",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._directory,
            )  # fmt: skip
        process = self._process
        wait_until(lambda: process.poll() is not None or self._serves(), SECONDS, f"etcd: {self.log()}")
        return process.poll() is None

    def _serves(self) -> bool:
        return "ready to serve client requests" in self.log().rpartition("etcd Version")[2] and self._connects()

    def _connects(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), SECONDS):
            return True
        return False


class Line:
    """Passes connections on to a port, until it is cut: then nothing more is passed, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._onward = port
        self._whole = threading.Event()
        self._whole.set()
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    @classmethod
    @contextlib.contextmanager
    def to(cls, port: int) -> Iterator[Line]:
        line = cls(port)
        try:
            yield line
        finally:
            line.mend()
            for one in line._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection((HOST, self._onward), SECONDS)
                self._sockets += (near, far)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._whole.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         *arguments], check=True, stderr=subprocess.DEVNULL, timeout=SECONDS,
    )  # fmt: skip
