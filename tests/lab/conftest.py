# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted hosts for the tests of the laboratory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]  # has no types
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # has no types

from tests.helpers.etcd import Certificates, Etcd
from tests.lab.cables import SERVICE
from tests.lab.cluster import Cluster
from tests.lab.emulator import EmulatedHost
from tests.lab.hosts import HOSTS, MID
from tests.lab.svm2 import SVM2_HOSTS, boot


@pytest.fixture(scope="session", params=list(HOSTS))
def emulated_host(request: pytest.FixtureRequest) -> Iterator[EmulatedHost]:
    """Each stock host in turn, booted once for all the tests that use it."""
    with boot(request.param) as host:
        yield host


@pytest.fixture(scope="session", params=list(SVM2_HOSTS))
def svm2_host(request: pytest.FixtureRequest) -> Iterator[EmulatedHost]:
    """Each host whose kernel speaks svm2 in turn, likewise."""
    with boot(request.param) as host:
        yield host


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """A server that a cluster's hosts reach."""
    directory = tmp_path_factory.mktemp("etcd")
    with Etcd(directory / "server", Certificates(directory / "certificates", SERVICE)) as server:
        yield server


@pytest.fixture(scope="session")
def cluster(etcd: Etcd) -> Iterator[Cluster]:
    """All three stock hosts and another MID on one network, booted once for all the tests that use it."""
    with Cluster(*HOSTS.values(), MID, service=etcd.port) as hosts:
        yield hosts


class ByHost(LoadScopeScheduling):  # type: ignore[misc]  # has no types
    """Each host, and the cluster, is booted by one worker of pytest-xdist; tests that need none go by file to where
    there is room."""

    def _split_scope(self, nodeid: str) -> str:
        # Parameters of a session come first in an identifier.
        file, _, test = nodeid.partition("::")
        parameters = test.partition("[")[2]
        if Path(file).name.startswith("test_cluster"):
            return "cluster"
        return next((name for name in (*SVM2_HOSTS, *HOSTS) if parameters.startswith(name)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByHost | None:
    """The marks of pytest-xdist 3.8 would do for this, but with pytest 9.2 they have no effect."""
    return ByHost(config, log) if config.getoption("dist") == "loadscope" else None
