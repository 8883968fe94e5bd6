# SPDX-License-Identifier: GPL-2.0-or-later
"""A cluster's hosts in rings, with their records in an etcd, and its operator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from qmpfilter.cluster.address import open_store
from qmpfilter.cluster.board import Board
from tests.helpers.etcd import Etcd

from .cables import SERVICE
from .cluster import SECONDS, Cluster, Member
from .hooked import Configuration, hooked
from .inhost.waiting import wait_until

_CLUSTER: Final = """
[cluster]
store = "etcd:https://{host}:{port}/{namespace}"
ca = "{directory}/etcd-ca.pem"
certificate = "{directory}/etcd.pem"
name = "{name}"
ring = "{ring}"
lease = 60
"""


class Operator:
    """Has commands of ``qmpfilter`` run, as on any host of the cluster.

    :param config: tells where the store is
    :param names: of the hosts
    """

    def __init__(self, config: Path, board: Board, names: frozenset[str]) -> None:
        self._config = config
        self.board = board
        self._names = names

    def run(self, *argv: str) -> str:
        """What a command prints; raises AssertionError with it if it ends with another status than 0."""
        command = [sys.executable, "-m", "qmpfilter", *argv, "--config", str(self._config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def rollout(self, *argv: str) -> None:
        """Changes the rollout, and waits until every host knows."""
        self.run("rollout", *argv)
        wait_until(self.known_to_all, SECONDS, f"all hosts to know of {' '.join(argv)}", 0.5)

    def known_to_all(self) -> bool:
        """Every host follows the rollout that there is."""
        current = self.board.rollout()
        serial = 0 if current is None else current.serial
        return {name: seen.serial for name, seen in self.board.seen().items()} == dict.fromkeys(self._names, serial)

    def ring(self, name: str) -> dict[str, Any]:
        """What `rollout status` tells of a ring."""
        told = json.loads(self.run("rollout", "status", "--json"))["progress"]
        found: dict[str, Any] = next(ring for ring in told if ring["ring"] == name)
        return found

    def counted(self, name: str, **figures: int) -> None:
        """Waits until a ring has seen so much."""

        def seen() -> bool:
            told = self.ring(name)
            return {figure: told[figure] for figure in figures} == figures

        wait_until(seen, SECONDS, f"ring {name} to have seen {figures}", 0.5)


@contextmanager
def rolling(cluster: Cluster, etcd: Etcd, directory: Path, rings: Mapping[str, str]) -> Iterator[Operator]:
    """All hosts are members of a cluster, each with the daemon and libvirt's hook, and are listed as healthy.

    :param directory: for the operator's files
    :param rings: of each host, by name
    """
    ca, certificate = etcd.access.ca, etcd.access.certificate
    assert ca is not None
    assert certificate is not None
    files = {"etcd-ca.pem": ca.read_bytes(), "etcd.pem": certificate.read_bytes()}

    # What was there before, should this be done again, is of no concern.
    namespace = uuid4().hex

    def toml(host: str, directory: str, name: str, ring: str) -> str:
        return _CLUSTER.format(
            host=host, port=etcd.port, namespace=namespace, directory=directory, name=name, ring=ring
        )

    def configuration(member: Member) -> Configuration:
        return Configuration(toml(SERVICE, "/etc/qmpfilter", member.name, rings[member.name]), files)

    for name, content in files.items():
        (directory / name).write_bytes(content)
    config = directory / "qmpfilter.toml"
    config.write_text(toml("127.0.0.1", str(directory), "operator", "none"))
    if not etcd.runs:
        etcd.start()
    store = open_store(f"{etcd.address}/{namespace}", etcd.access)
    try:
        operator = Operator(config, Board(store), frozenset(rings))
        with hooked(cluster, configuration):
            wait_until(
                lambda: operator.board.hosts().good.keys() == rings.keys(), SECONDS, "all hosts to be listed", 0.5
            )
            ailing = {name: host.ailing for name, host in operator.board.hosts().good.items() if host.ailing}
            assert not ailing, ailing
            yield operator
    finally:
        store.close()
