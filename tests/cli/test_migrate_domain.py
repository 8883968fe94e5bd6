# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter migrate DOMAIN DESTURI` and `qmpfilter policy` with a libvirt that only pretends."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.cli.main import EXIT_HOST, main
from qmpfilter.cli.policy_options import EXIT_IN_DOUBT, EXIT_STAYED, EXIT_VETOED
from tests.libvirt.fake import SOURCE, TARGET, UUID, FakeLibvirt

pytestmark = pytest.mark.usefixtures("world")

RUNNING = (1, 1)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> FakeLibvirt:
    """Two hosts and a guest."""
    fake = FakeLibvirt()
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "report"


def told(report: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(report.read_text())
    return read


def test_completed(world: FakeLibvirt, report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "guest", TARGET, "--live", "--bandwidth", "9", "--report", str(report)]) == 0
    out, errors = capsys.readouterr()
    assert out.startswith("completed: the destination runs the guest\n")
    assert f"  source, {SOURCE}: guest is absent\n" in out
    assert f"  destination, {TARGET}: guest is running; migrated in 120 ms, guest stopped for 7 ms\n" in out
    assert "through the filter" in errors.splitlines()[-1]
    how, parameters, flags = world.calls[0]
    assert (how, flags, parameters["bandwidth"]) == ("migrate3", 1, 9)
    whole = told(report)
    assert (whole["outcome"], whole["guest_at"], whole["edited_vcpus"]) == ("completed", "destination", 1)
    assert whole["domain"] == {"name": "guest", "uuid": UUID}
    assert whole["libvirt"]["flags"] == ["LIVE"]
    assert whole["libvirt"]["job"] == {"time_elapsed": 120, "downtime": 7, "memory_total": 1 << 26}


@pytest.mark.parametrize(("option", "pages"), [("auto", 1), ("off", 0)])
def test_vmcb12_is_read_through_libvirt(world: FakeLibvirt, report: Path, option: str, pages: int) -> None:
    assert main(["migrate", "guest", TARGET, "--read-vmcb12", option, "--report", str(report)]) == 0
    assert told(report)["vmcb12_pages_read"] == pages
    assert len(world.read) == pages


@pytest.mark.parametrize("name", [UUID, "7"])
def test_p2p_by_other_names_of_the_domain(world: FakeLibvirt, name: str) -> None:
    assert main(["migrate", name, TARGET, "--live", "--p2p"]) == 0
    assert [(how, flags) for how, _, flags in world.calls] == [("migrateToURI3", 3)]


def test_the_source_reaches_what_the_command_does_not(
    world: FakeLibvirt, report: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmpfilter.cli.migrate_domain.without_questions", lambda _: "qemu:///nowhere")
    world.away.add("qemu:///nowhere")
    assert main(["migrate", "guest", TARGET, "--p2p", "--report", str(report)]) == 0
    assert "cannot be asked in the end who runs the guest" in capsys.readouterr().err
    assert told(report)["guest_at"] == "unknown"


@pytest.mark.parametrize(
    ("name", "value", "options", "status", "said"),
    [
        ("said", "no such CPU", (), EXIT_STAYED, "libvirt: no such CPU; the guest is at the source"),
        # The stream has arrived, and libvirt thinks better of it.
        ("fails_late", "no such network", (), EXIT_STAYED, "libvirt: no such network; the guest is at the source"),
        ("states", {SOURCE: RUNNING, TARGET: RUNNING}, (), EXIT_HOST, "it cannot go there"),
        ("states", {SOURCE: (5, 0), TARGET: None}, (), EXIT_HOST, "guest is shut off: there is no state to filter"),
        ("away", {TARGET}, (), EXIT_HOST, f"libvirt: nobody answers at {TARGET}"),
        ("away", {TARGET}, ("--p2p",), EXIT_STAYED, f"libvirt: nobody answers at {TARGET}"),
        ("away", set(), ("-c", "qemu+ssh://there/system"), EXIT_HOST, "run qmpfilter there"),
    ],
)
def test_the_guest_stays(
    name: str,
    value: Any,
    options: tuple[str, ...],
    status: int,
    said: str,
    world: FakeLibvirt,
    capsys: pytest.CaptureFixture[str],
) -> None:
    setattr(world, name, value)
    assert main(["migrate", "guest", TARGET, *options]) == status
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert world.states[SOURCE] is not None


def test_a_veto(world: FakeLibvirt, tmp_path: Path, report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"schema": "qmpfilter.host/1", "kvm": {"parameters": {"kvm_amd": {"nested": "0"}}}}
    (tmp_path / "host.json").write_text(json.dumps(facts))
    host = str(tmp_path / "host.json")
    assert main(["migrate", "guest", TARGET, "--host", host, "--report", str(report)]) == EXIT_VETOED
    errors = capsys.readouterr().err.splitlines()[-1]
    assert errors.startswith("qmpfilter: vCPU 0:")
    assert errors.endswith("; the guest is at the source")
    assert (told(report)["outcome"], told(report)["guest_at"]) == ("vetoed", "source")


def test_two_guests(world: FakeLibvirt, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = world.migrate

    def revive(*arguments: Any) -> None:
        original(*arguments)
        world.states[SOURCE] = RUNNING

    monkeypatch.setattr(world, "migrate", revive)
    assert main(["migrate", "guest", TARGET]) == EXIT_IN_DOUBT
    assert "both libvirts say that they run the guest: stop one of them now" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle(
    number: signal.Signals, world: FakeLibvirt, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.held = threading.Event()

    def interrupt() -> None:
        assert world.sent.wait(20)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main(["migrate", "guest", TARGET, "--report", str(report)]) == EXIT_STAYED
    thread.join()
    out, errors = capsys.readouterr()
    assert "reason: the operator stopped it" in out
    assert errors.splitlines()[-1] == "qmpfilter: the operator stopped it; the guest is at the source"
    assert world.names() == ["migrate3", "abort"]
    assert told(report)["guest_at"] == "source"


@pytest.mark.parametrize(
    ("options", "call"),
    [
        (("--postcopy", "--postcopy-after-precopy"), "postcopy"),
        (("--timeout", "1"), "suspend"),
        (("--timeout", "1", "--timeout-postcopy"), "postcopy"),
    ],
)
def test_a_migration_is_helped_along(world: FakeLibvirt, options: tuple[str, ...], call: str) -> None:
    world.held = threading.Event()
    done = threading.Event()
    original = world.calls

    class Calls(list[Any]):
        def append(self, one: Any) -> None:
            super().append(one)
            if one[0] == call:
                world.held.set()  # type: ignore[union-attr]  # made before
                done.set()

    world.calls = Calls(original)
    assert main(["migrate", "guest", TARGET, "--live", *options]) == 0
    assert done.is_set()
    assert world.names() == ["migrate3", call]


def test_a_dry_run(world: FakeLibvirt, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "guest", TARGET, "--live", "--p2p", "--dname", "new", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing was done; ")
    for line in ("flags: LIVE, PEER2PEER", "destination_name: new", "SVM is on (EFER.SVME) on vCPU 0 of 2"):
        assert f"  {line}" in out
    assert world.calls == []


def test_a_domains_policy_holds_unless_the_command_says_otherwise(world: FakeLibvirt, report: Path) -> None:
    world.metadata = '<policy mode="observe" verdict="warn"/>'
    assert main(["migrate", "guest", TARGET, "--mode", "legacy", "--report", str(report)]) == 0
    assert (told(report)["mode"], told(report)["verdict"]) == ("legacy", "warn")


def test_without_the_binding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    assert main(["migrate", "guest", TARGET]) == EXIT_HOST
    errors = capsys.readouterr().err
    assert "python3-libvirt or qmpfilter[libvirt]" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(("persistent", "flags"), [(False, 1), (True, 3)])
def test_policy(world: FakeLibvirt, persistent: bool, flags: int, capsys: pytest.CaptureFixture[str]) -> None:
    world.persistent = persistent
    for argv, said in (
        ((), "guest: nothing of its own\n"),
        (("set", "--mode", "observe"), "guest: mode observe\n"),
        (("set", "--accept", "v-gif", "--accept", "l1-cet"), "guest: mode observe, accept l1-cet v-gif\n"),
        ((), "guest: mode observe, accept l1-cet v-gif\n"),
        (("clear",), "guest: nothing of its own\n"),
    ):
        assert main(["policy", "guest", *argv]) == 0
        assert capsys.readouterr().out == said
    assert {found for _, _, found in world.calls} == {flags}
    assert world.metadata is None


def test_a_policy_that_cannot_be_understood_can_be_cleared(
    world: FakeLibvirt, capsys: pytest.CaptureFixture[str]
) -> None:
    world.metadata = "<policy new='1'/>"
    for argv in (["policy", "guest"], ["policy", "guest", "set", "--mode", "off"], ["migrate", "guest", TARGET]):
        assert main(argv) == EXIT_HOST
        assert "cannot be understood: new is not known" in capsys.readouterr().err
    assert main(["policy", "guest", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"domain": "guest", "mode": None, "verdict": None, "accept": []}


@pytest.mark.parametrize("argv", [("set",), ("show", "--mode", "off"), ("clear", "--accept", "sev")])
def test_wrong_calls(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "guest", *argv]) == EXIT_HOST
    assert "belong together" in capsys.readouterr().err
