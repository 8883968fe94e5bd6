# SPDX-License-Identifier: GPL-2.0-or-later
"""What the operator of a cluster types, and reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.cli.main import main
from qmpfilter.cluster.board import Board
from qmpfilter.cluster.host import HostRecord, Seen
from qmpfilter.filter.policy import Mode
from tests.helpers.cluster import ANNEX, DOMAIN, NATIVE, a_board, host, tally

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return a_board(tmp_path / "store")


@pytest.fixture
def call(board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command: its exit status, and all that it says."""
    monkeypatch.setenv("COLUMNS", "80")
    config = tmp_path / "q.toml"
    config.write_text(f'[cluster]\nstore = "dir:{tmp_path}/store"\n')

    def run(*arguments: str) -> tuple[int, str]:
        status = main([*arguments, "--config", str(config)])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def listed(board: Board, *hosts: HostRecord, off: bool = False) -> None:
    lease = board.store.lease(600)
    for one in hosts:
        board.publish(one, lease)
        board.say_seen(one.name, Seen(0, off), lease)


def told(call: Call, *arguments: str) -> dict[str, Any]:
    status, said = call(*arguments, "--json")
    assert status == 0, said
    answer: dict[str, Any] = json.loads(said)
    return answer


def test_the_whole_way(call: Call, board: Board) -> None:
    assert call("rollout", "status") == (0, "no rollout has begun\n")
    assert call("rollout", "promote", "one")[0] == 3
    assert call("rollout", "start", "--rings", "one, two")[0] == 0
    assert call("rollout", "start", "--rings", "one") == (
        3,
        "qmpfilter: a rollout has begun already: abort it first, or go on with promote and resume\n",
    )
    status, said = call("rollout", "promote", "one")
    assert (status, said) == (3, "qmpfilter: ring one stays at observe: 0 of 10 migrations are done at this stage\n")
    board.say_tally("a", tally("one", Mode.OBSERVE, migrations=10))
    assert call("rollout", "promote", "two")[0] == 0
    answer = told(call, "rollout", "promote", "one", "--percent", "10", "--label", "x")
    assert answer["progress"][0]["stage"] == "annex"
    assert answer["progress"][0]["canaries"] == {"percent": 10, "labels": ["x"]}
    assert call("rollout", "set", "--ring", "one", "--percent", "100", "--no-labels")[0] == 0
    board.say_tally("b", tally("one", Mode.ANNEX, failed=1))
    assert "failed or in doubt: 1, allowed: 0" in call("rollout", "status")[1]
    assert call("rollout", "abort", "--why", "it fails")[0] == 0
    answer = told(call, "rollout", "resume")
    assert [(ring["stage"], ring["state"], ring["failed"]) for ring in answer["progress"]] == [
        ("observe", "running", 0),
        ("observe", "running", 0),
    ]
    status, said = call("rollout", "pause", "--ring", "two", "--why", "lunch")
    assert "two is paused: lunch" in said
    assert "pause two (lunch)" in said


def test_a_ring_without_hosts_is_told(call: Call, board: Board) -> None:
    listed(board, host("a", "canary"))
    status, said = call("rollout", "start", "--rings", "canary,canry")
    assert (status, "no host is in canry\n" in said, "no host is in canary\n" in said) == (0, True, False)


def test_overrides_come_and_go(call: Call) -> None:
    call("rollout", "start", "--rings", "one")
    upper = DOMAIN.upper()
    answer = told(call, "rollout", "set", "--host", "a=off", "--host", "b=annex", "--domain", f"{upper}=observe")
    assert answer["rollout"]["hosts"] == {"a": "off", "b": "annex"}
    assert answer["rollout"]["domains"] == {DOMAIN: "observe"}
    answer = told(call, "rollout", "set", "--host", "a=", "--domain", f"{DOMAIN}=", "--most-vetoes", "3")
    assert (answer["rollout"]["hosts"], answer["rollout"]["domains"]) == ({"b": "annex"}, {})
    assert answer["rollout"]["thresholds"]["most_vetoes"] == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["set"],
        ["set", "--host", "a"],
        ["set", "--host", "a=legacy"],
        ["set", "--host", "=off"],
        ["set", "--domain", "web=off"],
        ["set", "--percent", "101", "--ring", "one"],
        ["set", "--percent", "5"],
        ["promote", "three"],
        ["start"],
        ["resume"],
        ["plan", "--rings", ""],
    ],
)
def test_what_is_wrong_changes_nothing(call: Call, board: Board, arguments: list[str]) -> None:
    call("rollout", "start", "--rings", "one")
    before = board.rollout()
    status, said = call("rollout", *arguments)
    assert (status, said.count("\n")) == (3, 1), said
    assert board.rollout() == before


def test_a_plan_tells_who_is_held_back(call: Call, board: Board) -> None:
    assert "say with which rings" in call("rollout", "plan")[1]
    listed(board, host("a", "one", *ANNEX), host("b", "one", *NATIVE), host("c", "one", kernel=None), host("d", "x"))
    status, said = call("rollout", "plan", "--rings", "one")
    assert status == 0
    assert "ring one to annex: pairs of hosts: 10 observe, 2 annex\n" in said
    assert "held at observe: 4, as a to c, because of c it is not known which kernel it has\n" in said
    assert "before its next stage: 10 migrations\n" in said
    assert "in rings that the rollout does not have: d\n" in said
    assert board.rollout() is None
    answer = told(call, "rollout", "plan", "--rings", "one")
    assert [move["stage"] for move in answer["moves"]] == ["annex", "native"]
    assert answer["outside"] == ["d"]


def test_hosts_tell_what_they_take(call: Call, board: Board) -> None:
    assert call("hosts") == (0, "no host is listed\n")
    now = datetime.now(UTC)
    old, ahead = (now - timedelta(hours=3)).isoformat(), (now + timedelta(hours=3)).isoformat()
    record = host("a", "one", *ANNEX)
    listed(board, record, host("b", "two", ailing="no SVM"))
    board.store.put_always("hosts/c", b"{}")
    for name, when, said in (("d", old, "3 h ago"), ("e", ahead, "ahead of this clock"), ("f", "", "at no time")):
        listed(board, HostRecord(name, "r", (), (), "", "", record.facts, "", when))
        assert said in call("hosts")[1]
    status, told_all = call("hosts")
    assert status == 0
    assert "\n    not well: no SVM\n" in told_all
    assert "hosts/c: version is missing\n" in told_all
    assert told(call, "hosts")["hosts"]["a"]["facts"]["formats"] == list(ANNEX)


def test_off_for_all_names_who_has_not_said_so(call: Call, board: Board) -> None:
    listed(board, host("a", "one"), off=True)
    listed(board, host("b", "one"))
    status, said = call("off", "--all", "--wait", "0")
    assert (status, said) == (4, "everything passes as it is: 1 of 2 hosts say so\nnot yet: b\n")
    listed(board, host("b", "one"), off=True)
    assert told(call, "off", "--all", "--wait", "0") == {"off": True, "hosts": 2, "missing": [], "damaged": []}
    assert call("rollout", "status")[1].startswith("everything passes as it is: all hosts were switched off by ")
    status, said = call("on", "--all", "--wait", "0")
    assert (status, said) == (4, "migrations are filtered: 0 of 2 hosts say so\nnot yet: a, b\n")
    assert board.switch() is None


@pytest.mark.parametrize("command", [["hosts"], ["rollout", "status"], ["off", "--all"], ["on", "--all"]])
def test_a_host_on_its_own_has_no_cluster(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "q.toml"
    config.write_text("")
    assert main([*command, "--config", str(config)]) == 3
    assert "[cluster] names no store: this host is on its own" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["hosts"], ["rollout", "status"], ["off", "--all"], ["rollout", "pause"]])
def test_a_store_that_is_away(command: list[str], call: Call, tmp_path: Path) -> None:
    (tmp_path / "store").rename(tmp_path / "gone")
    status, said = call(*command)
    assert (status, said.count("\n")) == (3, 1)
    assert "no store is there" in said


def test_a_domain_that_is_no_uuid_needs_virsh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ["explain", "web", "b", "--socket", str(tmp_path / "none")]
    assert main(command) == 3
    assert "web: not a uuid, and there is no virsh that knows names: give the uuid" in capsys.readouterr().err
    virsh = tmp_path / "virsh"
    virsh.write_text(
        f'#!/bin/sh\n[ "$4" = "--domain=web" ] && echo {DOMAIN} || {{ echo "error: no domain" >&2; exit 1; }}\n'
    )
    virsh.chmod(0o755)
    assert main(command) == 3
    assert "no daemon answers" in capsys.readouterr().err
    assert main(["explain", "db", *command[2:]]) == 3
    assert "db: error: no domain" in capsys.readouterr().err
