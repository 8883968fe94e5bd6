# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted hosts for the tests of the laboratory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.emulator import EmulatedHost
from tests.lab.hosts import HOSTS, emulator, host_image


@pytest.fixture(scope="session", params=list(HOSTS))
def emulated_host(request: pytest.FixtureRequest) -> Iterator[EmulatedHost]:
    """Each host in turn, booted once for all the tests that use it."""
    with EmulatedHost(host_image(HOSTS[request.param]), emulator()) as host:
        yield host
