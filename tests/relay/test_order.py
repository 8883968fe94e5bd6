# SPDX-License-Identifier: GPL-2.0-or-later
"""An order reaches the worker as it was given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qmpfilter.errors import BugError, HostError, PolicyError
from qmpfilter.filter.policy import Enforcement, Mode, Policy
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.order import Order
from qmpfilter.relay.pair import Encryption, Pairing
from qmpfilter.verdict.facts import HostFacts, QemuBinary
from qmpfilter.verdict.version import Version

FACTS = HostFacts(
    kernel=Version.parse("6.12.1"),
    parameters={"kvm_amd": {"nested": "1"}},
    qemu=(QemuBinary("/usr/bin/qemu", None),),
    formats=("legacy", "annex", "svm2"),
)
ORDER = Order(
    session="20260101T000000-01234567",
    listen="tcp:127.0.0.1:1",
    destination="unix:/there",
    policy=Policy(Mode.NATIVE, Enforcement.WARN, FACTS, frozenset({"one", "two"}), without_return_path=True),
    waits=Waits(source=1, tail=2.5),
    report=Path("/a/report"),
    journal=Path("/a/journal"),
    kill_switch=Path("/a/off"),
    storage="tcp:127.0.0.2:49153",
    pairing=Pairing(Encryption.NEVER, Path("/a/pki"), "8d7a1d9f-6f4a-4a3c-9d7e-1f2a3b4c5d6e"),
)


@pytest.mark.parametrize("order", [ORDER, replace(ORDER, policy=Policy())])
def test_there_and_back(order: Order) -> None:
    text = order.to_json()
    assert "\n" not in text
    assert Order.from_json(text) == order


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"format": 2}, BugError, "another version of qmpfilter"),
        ({"lunch": 1}, BugError, "lunch"),
        ({"waits": {"lunch": 1}}, BugError, "lunch"),
        ({"policy": {"lunch": 1}}, BugError, "lunch"),
        ({"policy": {"mode": "upside-down"}}, BugError, "upside-down"),
        ({"policy": {"mode": "native"}}, PolicyError, "announce"),
        ({"policy": {"facts": {}}}, HostError, "no schema"),
        ({"pairing": {"encryption": "lunch", "pki": "/a", "domain": ""}}, BugError, "lunch"),
        ({"pairing": {}}, BugError, "no order"),
        ({"report": None}, BugError, "no order"),
    ],
)
def test_what_is_no_order(change: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Order.from_json(json.dumps({**json.loads(ORDER.to_json()), **change}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", "null"])
def test_what_is_no_object(text: str) -> None:
    with pytest.raises(BugError):
        Order.from_json(text)
