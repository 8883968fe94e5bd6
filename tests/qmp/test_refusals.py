# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of a QEMU that forbid a migration."""

from __future__ import annotations

from typing import Any

import pytest

from qmpfilter.errors import PolicyError
from qmpfilter.qmp.info import MigrationInfo
from qmpfilter.qmp.refusals import check_destination, check_source

PLAIN = {"events": True, "return-path": True, "multifd": False, "x-ignore-shared": True}
PARAMETERS = {"tls-creds": "", "mode": "normal"}
NOTHING = MigrationInfo()

SETTINGS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"capabilities": {"multifd": True}}, "multifd uses several connections"),
    ({"capabilities": {"postcopy-preempt": True}}, "postcopy-preempt uses two connections"),
    ({"capabilities": {"x-colo": True}}, "x-colo goes on for ever"),
    ({"capabilities": {"mapped-ram": True}}, "mapped-ram writes to files only: turn it off"),
    ({"capabilities": {"background-snapshot": True}}, "allows no return path"),
    ({"parameters": {"tls-creds": "tls0"}}, "tls-creds is set, .* set it to the empty string"),
    ({"parameters": {"mode": "cpr-reboot"}}, "mode is cpr-reboot"),
    ({"parameters": {"mode": "cpr-transfer"}}, "set it to normal"),
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *SETTINGS,
        ({"info": MigrationInfo(status="active")}, r"goes on there already \(active\)"),
        ({"info": MigrationInfo(status="postcopy-paused")}, "wait for its end, or cancel it"),
        ({"info": MigrationInfo(blocked=("VFIO is not migratable",))}, "cannot be migrated: VFIO is not migratable"),
        ({"status": "postmigrate"}, "migrated away already"),
        ({"status": "inmigrate"}, "waits for a migration itself"),
    ],
)
def test_source(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"status": "running", "info": NOTHING, "capabilities": PLAIN, "parameters": PARAMETERS}
    with pytest.raises(PolicyError, match=f"^/run/vm: .*{said}"):
        check_source("/run/vm", **given | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *SETTINGS,
        ({"status": "running"}, r"does not wait for a migration \(running\): start it with -incoming defer"),
        ({"info": MigrationInfo(status="setup")}, "give that address instead of its QMP socket"),
    ],
)
def test_destination(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"status": "inmigrate", "info": NOTHING, "capabilities": PLAIN, "parameters": PARAMETERS}
    with pytest.raises(PolicyError, match=f"^/run/vm: .*{said}"):
        check_destination("/run/vm", **given | change)


@pytest.mark.parametrize("status", ["running", "paused", "prelaunch", "shutdown"])
@pytest.mark.parametrize("before", ["", "none", "failed", "cancelled"])
def test_what_may_be_migrated(status: str, before: str) -> None:
    check_source("/run/vm", status, MigrationInfo(status=before), PLAIN, PARAMETERS)
    check_source("/run/vm", status, MigrationInfo(status=before), {}, {})


def test_all_the_reasons_are_told() -> None:
    with pytest.raises(PolicyError, match=r"multifd .*; .*tls-creds .*; .*migrated away"):
        check_source("/run/vm", "postmigrate", NOTHING, {"multifd": True}, {"tls-creds": "tls0"})
