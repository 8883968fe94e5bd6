# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report tells of the vCPUs' states."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from typing import Any

import pytest

from qmpfilter.errors import HostError, PolicyError
from qmpfilter.filter.gate import Gate
from qmpfilter.filter.policy import Mode, Policy
from qmpfilter.relay import report
from qmpfilter.relay.deadline import Deadline
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.relay import Relay
from qmpfilter.verdict.facts import HostFacts
from tests.helpers.fixtures import fixtures

STREAMS = {fixture.name: fixture.file("stream") for fixture in fixtures() if fixture.name in ("mid-l2", "mid-mixed")}
NO_NESTING = HostFacts.from_json(
    '{"schema": "qmpfilter.host/1", "kvm": {"parameters": {"kvm_amd": {"nested": "0"}}}}'
)


def nowhere(_: Deadline, _source: socket.socket) -> socket.socket:
    raise AssertionError("nothing is connected here")


def told(policy: Policy, stream: str = "mid-l2") -> dict[str, Any]:
    """The report of a stream that went through a gate under a policy, as it is read again."""
    gate = Gate(policy)
    relay = Relay(nowhere, gate, Waits())
    with contextlib.suppress(PolicyError):
        list(gate.receive_data(memoryview(STREAMS[stream])))
    # Stopped, it only closes what it has.
    relay.stop(HostError("the test is over"))
    relay.run([])
    made: dict[str, Any] = json.loads(json.dumps(report.as_json(relay, gate)))
    return made


def policy(mode: Mode, facts: HostFacts | None = None) -> Policy:
    return Policy(mode=mode, facts=facts or HostFacts(), without_return_path=True)


@pytest.mark.parametrize(
    ("mode", "groups"),
    [
        (Mode.ANNEX, ["svm2", "svm2 l1 visible", "svm2 vmcb12 save"]),
        (Mode.LEGACY, []),
        # What would be.
        (Mode.OBSERVE, ["svm2", "svm2 l1 visible", "svm2 vmcb12 save"]),
    ],
)
def test_what_became_of_a_state(mode: Mode, groups: list[str]) -> None:
    made = told(policy(mode))
    (state,) = made["states"]
    assert state["index"] == 0
    assert state["before"]["nested state"]["format"] == "svm"
    assert list(state["after"]) == groups
    assert made["edited_vcpus"] == (mode is Mode.ANNEX)


def test_a_veto_tells_of_the_state_that_was_its_reason() -> None:
    made = told(policy(Mode.ANNEX, NO_NESTING))
    assert made["vcpus"] == []
    (state,) = made["states"]
    assert (state["index"], state["after"]) == (0, {})


def test_several_vcpus_each_for_itself() -> None:
    made = told(policy(Mode.ANNEX), "mid-mixed")
    changed = [state["index"] for state in made["states"] if state["after"]]
    assert changed == [vcpu["index"] for vcpu in made["vcpus"] if vcpu["outcome"] == "converted"]
    assert 0 < len(changed) < len(made["vcpus"])


def test_not_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_MOST_STATES", 1)
    assert len(told(policy(Mode.ANNEX), "mid-mixed")["states"]) == 1


def test_a_state_that_cannot_be_told_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(report, "state_of", broken)
    with caplog.at_level(logging.ERROR):
        made = told(policy(Mode.ANNEX))
    assert (made["states"], made["edited_vcpus"]) == ([], 1)
    assert "the state of vCPU 0" in caplog.text
