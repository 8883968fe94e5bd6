# SPDX-License-Identifier: GPL-2.0-or-later
"""Daemons of three hosts on this machine, and the store that they share."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.cli.main import main
from qmpfilter.cluster.counts import Counts, Sum
from qmpfilter.cluster.rollout import Rollout, State, Thresholds
from qmpfilter.errors import HostError, PolicyError
from qmpfilter.filter.policy import Mode
from tests.helpers.cluster import ANNEX, DOMAIN, a_board, facts, rollout
from tests.helpers.daemon import DaemonProcess
from tests.helpers.migration import PART, SHUT_OK, STREAM, Ends, asked

pytestmark = pytest.mark.lab

NAMES = ("a", "b", "c")


class Cluster:
    """Three daemons, and their store."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.store = directory / "store"
        self.board = a_board(self.store)
        self.daemons = {}
        (directory / "facts.json").write_text(json.dumps(facts(*ANNEX).to_json()))
        for name in NAMES:
            own = directory / name
            own.mkdir()
            config = f"""
                [cluster]
                store = "dir:{self.store}"
                name = "{name}"
                ring = "{"main" if name == "c" else "canary"}"
                addresses = ["10.9.9.{ord(name)}"]
                facts = "{directory}/facts.json"
                lease = 3
                stale = 0.5
                """
            self.daemons[name] = stack.enter_context(DaemonProcess(own, config))
        self.a, self.b, self.c = self.daemons.values()

    def set(self, whole: Rollout) -> None:
        """There is this rollout, and all hosts know it."""

        def replaced(current: Rollout | None, _: Sum) -> Rollout:
            return whole if current is None else replace(whole, serial=current.serial + 1)

        self.board.change(replaced)
        self.a.until(self.all_have_seen, "the rollout to be seen")

    def all_have_seen(self) -> bool:
        """Every host knows the rollout that there is."""
        whole = self.board.rollout()
        serial = 0 if whole is None else whole.serial
        return {name: one.serial for name, one in self.board.seen().items()} == dict.fromkeys(NAMES, serial)

    def explain(self, daemon: DaemonProcess, destination: str, **what: Any) -> str:
        return str(daemon.ask("explain", destination=destination, domain=DOMAIN, **what)["mode"])

    def ring(self, name: str) -> tuple[Mode, State]:
        whole = self.board.rollout()
        assert whole is not None
        return whole.ring(name).stage, whole.ring(name).state


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        whole = Cluster(tmp_path_factory.mktemp("cluster"), stack)
        whole.a.until(lambda: all(hosts_of(one) == 3 for one in whole.daemons.values()), "three hosts to be listed")
        yield whole


def hosts_of(daemon: DaemonProcess) -> int:
    return int(daemon.ask("status")["cluster"]["hosts"])


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    """All three run, and both rings are at annex."""
    for daemon in started.daemons.values():
        daemon.revived()
    started.a.until(lambda: all(hosts_of(one) == 3 for one in started.daemons.values()), "three hosts to be listed")
    baseline = started.board.counts().whole
    fresh = rollout({"canary": Mode.ANNEX, "main": Mode.ANNEX}, thresholds=Thresholds(1))
    rings = tuple(replace(ring, baseline=baseline.get(ring.name, {})) for ring in fresh.rings)
    started.set(replace(fresh, rings=rings))
    ways = ((started.a, "b"), (started.a, "c"), (started.c, "a"))
    started.a.until(lambda: all(started.explain(*way) == "annex" for way in ways), "all of them to be well")
    return started


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    with Ends(tmp_path / "incoming") as both:
        yield both


def migrate(daemon: DaemonProcess, ends: Ends, *, fails: bool = False, **what: Any) -> dict[str, Any]:
    """A migration and its report."""
    answer = daemon.ask("relay", **asked(ends, **what))
    ends.dial(answer["listen"])
    if fails:
        ends.send(STREAM[:PART])
        ends.accept()
        ends.destination.close()
    else:
        ends.send(STREAM)
        ends.accept()
        ends.arrive(len(STREAM) - 1)
        assert ends.finish() == SHUT_OK
    return daemon.report(str(answer["session"]))


def test_a_host_that_is_killed_vanishes_with_its_lease(cluster: Cluster) -> None:
    cluster.c.process.send_signal(signal.SIGKILL)
    cluster.c.process.wait(20)
    assert cluster.explain(cluster.a, "c") == "annex"
    cluster.a.until(lambda: set(cluster.board.hosts().good) == {"a", "b"}, "host c to vanish")
    cluster.a.until(lambda: hosts_of(cluster.a) == 2, "host a to know it")
    assert cluster.explain(cluster.a, "c") == "observe"


def test_a_host_that_ends_takes_its_leave(cluster: Cluster) -> None:
    cluster.c.process.send_signal(signal.SIGTERM)
    cluster.c.process.wait(20)
    assert set(cluster.board.hosts().good) == {"a", "b"}


def test_off_for_all_reaches_all_and_on_undoes_no_operators_off(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    switches = [daemon.runtime / "off" for daemon in cluster.daemons.values()]
    cluster.b.ask("off")
    assert main(["off", "--all", "--config", str(cluster.a.config), "--wait", "30"]) == 0
    assert "everything passes as it is: 3 of 3 hosts say so" in capsys.readouterr().out
    assert all(switch.exists() for switch in switches)
    assert cluster.explain(cluster.a, "b") == "off"
    with pytest.raises(PolicyError, match=r"all hosts were switched off by .*: 'qmpfilter on --all' ends that"):
        cluster.a.ask("on")
    # What is removed by hand comes back.
    switches[0].unlink()
    cluster.a.until(switches[0].exists, "the kill switch to come back")
    assert main(["on", "--all", "--config", str(cluster.a.config), "--wait", "30"]) == 0
    cluster.a.until(lambda: [one.exists() for one in switches] == [False, True, False], "the switches to follow")
    cluster.b.ask("on")
    assert not switches[1].exists()


def test_without_the_store_what_was_known_holds_for_a_while(cluster: Cluster) -> None:
    gone = cluster.store.rename(cluster.store.with_name("gone"))
    try:
        cluster.a.until(lambda: bool(cluster.a.ask("status")["cluster"]["stale"]), "host a to fall back")
        told = cluster.a.ask("status")["cluster"]
        assert "no store is there" in told["away"]
        assert (told["stage"], told["hosts"]) == ("annex", 3)
        assert cluster.explain(cluster.a, "b") == "observe"
        # The next daemon knows what the one before it knew.
        cluster.b.process.send_signal(signal.SIGKILL)
        cluster.b.process.wait(20)
        cluster.b.start()
        assert (hosts_of(cluster.b), cluster.b.ask("status")["cluster"]["stage"]) == (3, "annex")
    finally:
        gone.rename(cluster.store)
    cluster.a.until(lambda: cluster.explain(cluster.a, "b") == "annex", "host a to follow again")
    assert "nothing is edited any more" in cluster.a.log()
    cluster.a.until(lambda: "the rollout is followed" in cluster.a.log(), "host a to say so")
    cluster.b.until(lambda: cluster.explain(cluster.b, "a") == "annex", "host b to follow again")


@pytest.mark.parametrize(
    ("what", "mode"),
    [
        ({"destination": "b"}, "annex"),
        ({"destination": "10.9.9.98"}, "annex"),
        ({"destination": "b", "mode": "observe"}, "observe"),
        ({"destination": "b", "mode": "native"}, "annex"),
        ({"destination": "b", "domain_mode": "off"}, "off"),
        ({"destination": "nowhere"}, "observe"),
        ({}, "observe"),
    ],
)
def test_a_request_gets_no_more_than_the_cluster_allows(cluster: Cluster, what: dict[str, str], mode: str) -> None:
    answer = cluster.a.ask("explain", domain=DOMAIN, **what)
    assert answer["mode"] == mode
    assert answer["why"] in [step["why"] for step in answer["steps"]]


def test_a_session_begins_with_the_mode_that_is_explained(cluster: Cluster, ends: Ends) -> None:
    answer = cluster.a.ask("relay", **asked(ends, destination="b", mode="native"))
    assert (answer["mode"], answer["why"]) == ("annex", "ring canary is at annex")
    cluster.a.ask("stop", session=answer["session"])
    assert cluster.a.report(answer["session"])["mode"] == "annex"


def test_what_ends_is_counted_for_the_rings_of_both_ends(cluster: Cluster, ends: Ends) -> None:
    def done() -> list[int]:
        totals = cluster.board.counts().whole
        return [totals.get(ring, {}).get(Mode.ANNEX, Counts()).migrations for ring in ("canary", "main")]

    before = done()
    assert migrate(cluster.a, ends, destination="c")["outcome"] == "completed"

    def counted() -> bool:
        return done() == [count + 1 for count in before]

    cluster.a.until(counted, "the migration to be counted")
    # After a restart it is counted no second time.
    cluster.a.process.send_signal(signal.SIGKILL)
    cluster.a.process.wait(20)
    cluster.a.start()
    cluster.a.until(lambda: not cluster.a.ask("status")["cluster"]["away"], "the store to be heard")
    assert counted()


def test_a_failure_pauses_both_rings(cluster: Cluster, ends: Ends) -> None:
    assert migrate(cluster.a, ends, fails=True, destination="c")["outcome"] in ("failed", "refused")
    cluster.a.until(lambda: cluster.ring("main") == (Mode.ANNEX, State.PAUSED), "the ring to be paused")
    assert cluster.ring("canary") == (Mode.ANNEX, State.PAUSED)
    cluster.c.until(lambda: cluster.explain(cluster.c, "a") == "observe", "host c to hear of it")
    assert main(["rollout", "promote", "canary", "--config", str(cluster.a.config)]) == 3
    assert main(["rollout", "resume", "--config", str(cluster.a.config)]) == 0
    cluster.c.until(lambda: cluster.explain(cluster.c, "a") == "annex", "host c to go on")


def test_two_daemons_of_one_name_edit_nothing(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cluster.c.config.read_text().removeprefix(cluster.c.base)
    with DaemonProcess(tmp_path, config) as twin:
        twin.until(lambda: "named c, too" in cluster.c.log() and "named c, too" in twin.log(), "both to say so")
        cluster.a.until(lambda: cluster.explain(cluster.a, "c") == "observe", "host a to hear of it")

        def told() -> bool:
            assert main(["status", "--socket", str(twin.socket)]) == 0
            return "this host is not healthy: another host of this cluster is named c, too" in capsys.readouterr().out

        # One of them that is kept from its turns for as long as its lease is thought to be gone.
        twin.until(told, "its status to say so")
    cluster.a.until(lambda: cluster.explain(cluster.a, "c") == "annex", "host c to be well again")


def test_damage_in_the_store_edits_nothing_and_is_told(cluster: Cluster) -> None:
    store = cluster.board.store
    entry = store.get("control/rollout")
    assert entry is not None
    store.put_always("control/rollout", entry.data[:-20])
    store.put_always("hosts/b", b"\x00")
    damaged = "control/rollout: a damaged record"
    cluster.a.until(lambda: damaged in cluster.a.ask("status")["cluster"]["stale"], "host a to see the damage")
    assert cluster.explain(cluster.a, "c") == "observe"
    store.put_always("control/rollout", entry.data)
    cluster.a.until(lambda: cluster.explain(cluster.a, "c") == "annex", "host a to go on")
    # Host b says again what it is.
    cluster.b.until(lambda: set(cluster.board.hosts().good) == set(NAMES), "host b to be listed again")


def test_a_host_on_its_own_explains_nothing(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as alone:
        assert alone.ask("status")["cluster"] is None
        with pytest.raises(HostError, match="this host is in no cluster"):
            alone.ask("explain", destination="b")
