# SPDX-License-Identifier: GPL-2.0-or-later
"""``virsh migrate`` without any flag of ours: libvirt's hook at the destination brings the source to the daemon."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.libvirt import arrival
from qmpfilter.libvirt.arrival import Arrival
from qmpfilter.libvirt.domain import DomainXml
from tests.lab.hosts import MID, OLD
from tests.lab.inhost.waiting import listens, wait_until
from tests.lab.session import (
    SECONDS,
    SessionDaemon,
    Started,
    VirshError,
    assert_same_disk,
    guest_of,
    guest_with_disk,
    provide_package,
    shared_directory,
)

pytestmark = pytest.mark.lab

HERE, BEHIND = "127.0.0.3", "127.0.0.2"
QEMU = f'migration_host = "{HERE}"\nmigration_address = "{BEHIND}"\n'
NOVA = "<instance><name>a</name></instance>"


def settings(name: str, *, required: bool = False) -> str:
    return f"socket = /shared/{name}/run/control.sock\ndeadline = 5\nrequire_daemon = {'yes' if required else 'no'}\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SessionDaemon, SessionDaemon]]:
    """An old libvirt, and a newer one that has the hook and whose QEMUs wait at a loopback address."""
    shared = shared_directory(tmp_path_factory)
    provide_package(shared)
    with (
        SessionDaemon(OLD, shared, "old") as old,
        SessionDaemon(MID, shared, "mid", qemu=QEMU, hook=settings("mid")) as mid,
    ):
        yield old, mid


@pytest.fixture(scope="module")
def daemon(pair: tuple[SessionDaemon, SessionDaemon]) -> Iterator[Started]:
    """The daemon of qmpfilter beside the newer one."""
    _, mid = pair
    configure(mid)
    with mid.running_qmpfilter("run", "--config", f"/shared/{mid.name}/qmpfilter.toml") as started:

        def answers() -> bool:
            assert started.process.poll() is None, started.process.communicate()[1]
            return listens(Path(f"/shared/{mid.name}/run/control.sock"))

        wait_until(answers, SECONDS, "the daemon", 0.1)
        yield started


def configure(libvirt: SessionDaemon, more: str = "") -> None:
    home = f"/shared/{libvirt.name}"
    (libvirt.directory / "qmpfilter.toml").write_text(
        f'runtime_directory = "{home}/run"\nstate_directory = "{home}/state"\n'
        f'[ingress]\naddresses = ["{HERE}"]\n{more}\n'
    )


def reports(libvirt: SessionDaemon) -> dict[str, dict[str, Any]]:
    """Those of all sessions."""
    found = (libvirt.directory / "state/sessions").glob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in found}


def arrived(libvirt: SessionDaemon) -> Arrival:
    """What the guest's metadata says of how it came."""
    told = Arrival.of(DomainXml(libvirt.virsh("dumpxml", "guest")).attributes(arrival.NAMESPACE) or {})
    assert told is not None
    return told


def report_of_arrival(libvirt: SessionDaemon) -> dict[str, Any]:
    """That of the session that its metadata names."""
    session = arrived(libvirt).session
    wait_until(lambda: session in reports(libvirt), SECONDS, "the report", 0.1)
    return reports(libvirt)[session]


WAYS = {
    "plain": (),
    "p2p": ("--p2p",),
    "parallel": ("--parallel", "--parallel-connections", "2"),
    "persistent": ("--p2p", "--persistent", "--undefinesource"),
    "unix": ("--migrateuri", "unix:///shared/m.sock"),
    "unix, parallel": ("--migrateuri", "unix:///shared/m.sock", "--parallel"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("daemon")
def test_it_needs_no_flags(pair: tuple[SessionDaemon, SessionDaemon], way: str) -> None:
    old, mid = pair
    with guest_of(old, mid):
        old.virsh("metadata", "guest", "urn:nova", "--key", "nova", "--set", NOVA)
        old.virsh("migrate", "--live", *WAYS[way], "guest", mid.uri)
        assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
        report = report_of_arrival(mid)
        assert (report["outcome"], report["domain"]["name"], report["warnings"]) == ("completed", "guest", [])
        assert report["channels"][0] == "main"
        assert len(report["channels"]) == {"parallel": 3, "unix, parallel": 3}.get(way, 1)
        assert "<name>a</name>" in mid.virsh("metadata", "guest", "urn:nova")
        # The worker leaves its report, and the daemon clears up when the worker has gone.
        wait_until(lambda: not list(mid.directory.parent.glob("m.sock*")), SECONDS, "the sockets' end", 0.1)


@pytest.mark.parametrize("way", ["plain", "p2p", "parallel"])
@pytest.mark.usefixtures("daemon")
def test_its_disk_comes_too(pair: tuple[SessionDaemon, SessionDaemon], way: str) -> None:
    old, mid = pair
    with guest_with_disk(old, mid):
        old.virsh("migrate", "--live", "--copy-storage-all", *WAYS[way], "guest", mid.uri)
        assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
        assert_same_disk(old, mid)
        report = report_of_arrival(mid)
        assert (report["outcome"], report["warnings"]) == ("completed", [])
        assert report["channels"][:2] == ["storage", "main"]


@pytest.mark.usefixtures("daemon")
def test_a_domain_whose_policy_makes_no_sense_stays(pair: tuple[SessionDaemon, SessionDaemon]) -> None:
    old, mid = pair
    with guest_of(old, mid):
        old.virsh("metadata", "guest", "urn:qmpfilter:policy:1", "--key", "q", "--set", "<policy mode='fast'/>")
        with pytest.raises(VirshError, match="qmpfilter: the policy in the domain's metadata cannot be understood"):
            old.virsh("migrate", "--live", "guest", mid.uri)
        assert (old.state("guest"), mid.state("guest")) == ("running", "absent")


@pytest.mark.usefixtures("daemon")
def test_with_the_switch_on_it_passes_as_it_is(pair: tuple[SessionDaemon, SessionDaemon]) -> None:
    old, mid = pair
    switch = mid.directory / "run/off"
    switch.touch()
    try:
        with guest_of(old, mid):
            before = reports(mid).keys()
            old.virsh("migrate", "--live", "guest", mid.uri)
            assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
            wait_until(lambda: len(reports(mid)) > len(before), SECONDS, "the report", 0.1)
            [new] = reports(mid).keys() - before
            assert reports(mid)[new]["switched_off"]
    finally:
        switch.unlink()


@pytest.mark.usefixtures("daemon")
def test_what_was_saved_is_restored(pair: tuple[SessionDaemon, SessionDaemon]) -> None:
    _, mid = pair
    with guest_of(mid):
        mid.virsh("save", "guest", "/shared/image")
        before = reports(mid).keys()
        mid.virsh("restore", "/shared/image")
        assert mid.state("guest") == "running"
        assert reports(mid).keys() == before


@pytest.mark.parametrize("required", [False, True], ids=["not required", "required"])
@pytest.mark.parametrize("frozen", [False, True], ids=["away", "frozen"])
def test_without_a_daemon(
    pair: tuple[SessionDaemon, SessionDaemon], daemon: Started, frozen: bool, required: bool
) -> None:
    old, mid = pair
    mid.set_hook(settings("mid" if frozen else "nobody", required=required).replace("= 5", "= 1"))
    if frozen:
        daemon.signal(signal.SIGSTOP)
    try:
        with guest_of(old, mid):
            # QEMU itself can be reached there.
            migration = ("migrate", "--live", "guest", mid.uri, "--migrateuri", f"tcp://{BEHIND}")
            if required:
                with pytest.raises(VirshError, match="qmpfilter: the daemon does not answer"):
                    old.virsh(*migration)
                assert (old.state("guest"), mid.state("guest")) == ("running", "absent")
            else:
                old.virsh(*migration)
                assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
    finally:
        daemon.signal(signal.SIGCONT)
        mid.set_hook(settings("mid"))


@pytest.mark.parametrize("required", [False, True], ids=["not required", "required"])
@pytest.mark.usefixtures("daemon")
def test_a_qemu_that_the_source_reaches_directly(pair: tuple[SessionDaemon, SessionDaemon], required: bool) -> None:
    old, mid = pair
    configure(mid, f"required = {str(required).lower()}")
    try:
        reload(mid)
        with guest_of(old, mid):
            migration = ("migrate", "--live", "guest", mid.uri, "--migrateuri", f"tcp://{HERE}")
            if required:
                with pytest.raises(VirshError, match="qmpfilter: the domain's QEMU listens at"):
                    old.virsh(*migration, "--listen-address", "0.0.0.0")
                assert (old.state("guest"), mid.state("guest")) == ("running", "absent")
            else:
                old.virsh(*migration, "--listen-address", "0.0.0.0")
                assert (old.state("guest"), mid.state("guest")) == ("absent", "running")
    finally:
        configure(mid)
        reload(mid)


def reload(libvirt: SessionDaemon) -> None:
    done = libvirt.qmpfilter("reload", "--socket", f"/shared/{libvirt.name}/run/control.sock")
    assert done.returncode == 0, done.stderr
