# SPDX-License-Identifier: GPL-2.0-or-later
"""Records go to JSON and back, and what is not a record is told as such."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from qmpfilter.cluster.counts import Counts, Tally
from qmpfilter.cluster.form import VERSION
from qmpfilter.cluster.host import HostRecord, Seen
from qmpfilter.cluster.rollout import STAGES, Canaries, Change, Ring, Rollout, State, Switch, Thresholds, bucket
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import Mode
from tests.helpers.cluster import BY, DOMAIN, NATIVE, host

COUNTS = some.builds(Counts, *[some.integers(0, 1 << 40)] * 4)
BY_MODE = some.dictionaries(some.sampled_from(Mode), COUNTS)
RINGS = some.builds(
    Ring,
    name=some.just("ring"),
    stage=some.sampled_from(STAGES),
    state=some.sampled_from(State),
    why=some.text(max_size=5),
    by=some.text(max_size=5),
    at=some.text(max_size=5),
    canaries=some.builds(Canaries, some.integers(0, 100), some.lists(some.text(max_size=5)).map(tuple)),
    baseline=BY_MODE,
)
ROLLOUTS = some.builds(
    Rollout,
    serial=some.integers(0, 1 << 40),
    rings=RINGS.map(lambda ring: (ring,)),
    thresholds=some.builds(Thresholds, *[some.integers(0, 1000)] * 3),
    hosts=some.dictionaries(some.text(max_size=5), some.sampled_from(STAGES)),
    domains=some.dictionaries(some.uuids().map(str), some.sampled_from(STAGES)),
    history=some.lists(some.builds(Change, some.text(), some.text(), some.text()), max_size=3).map(tuple),
)
WHOLE = Rollout(7, (Ring("one", baseline={Mode.ANNEX: Counts(1, 2, 3, 4)}), Ring("two")), domains={DOMAIN: Mode.OFF})
TALLY = Tally({"one": {Mode.OBSERVE: Counts(1)}}, ("s",))
RECORDS: dict[str, tuple[bytes, Callable[[str, bytes], Any]]] = {
    "host": (host("a", "one", *NATIVE, labels=("x",), addresses=("10.0.0.1",)).to_json(), HostRecord.from_json),
    "seen": (Seen(3, True).to_json(), Seen.from_json),
    "rollout": (WHOLE.to_json(), Rollout.from_json),
    "switch": (Switch(BY.who, BY.at).to_json(), Switch.from_json),
    "tally": (TALLY.to_json(with_sessions=True), Tally.from_json),
}


@settings(max_examples=settings().max_examples // 5)
@given(ROLLOUTS)
def test_rollouts_come_back(rollout: Rollout) -> None:
    assert Rollout.from_json("r", rollout.to_json()) == rollout


@settings(max_examples=settings().max_examples // 5)
@given(some.dictionaries(some.text(max_size=5), BY_MODE))
def test_tallies_come_back(totals: dict[str, dict[Mode, Counts]]) -> None:
    tally = Tally(totals, ("a", "b"))
    assert Tally.from_json("t", tally.to_json(with_sessions=True)) == tally
    assert Tally.from_json("t", tally.to_json(with_sessions=False)) == Tally(totals)


@pytest.mark.parametrize(("data", "read"), RECORDS.values(), ids=RECORDS)
def test_records_come_back(data: bytes, read: Callable[[str, bytes], Any]) -> None:
    record = read("r", data)
    assert record == read("r", json.dumps(json.loads(data), indent=3).encode())


@pytest.mark.parametrize(("data", "read"), RECORDS.values(), ids=RECORDS)
def test_an_unknown_key_is_named(data: bytes, read: Callable[[str, bytes], Any]) -> None:
    with pytest.raises(HostError, match=r"^the place: not understood: stop_all$"):
        read("the place", json.dumps({**json.loads(data), "stop_all": True}).encode())


@pytest.mark.parametrize(("data", "read"), RECORDS.values(), ids=RECORDS)
def test_every_key_is_needed(data: bytes, read: Callable[[str, bytes], Any]) -> None:
    whole = json.loads(data)
    for key in whole:
        with pytest.raises(HostError, match=f"^r: {key} is missing"):
            read("r", json.dumps({name: value for name, value in whole.items() if name != key}).encode())


@pytest.mark.parametrize(("data", "read"), RECORDS.values(), ids=RECORDS)
def test_this_version_and_the_one_before_are_read(data: bytes, read: Callable[[str, bytes], Any]) -> None:
    whole = json.loads(data)
    for version in (VERSION - 1, VERSION):
        read("r", json.dumps({**whole, "version": version}).encode())
    for other in (VERSION + 1, VERSION - 2, "1", None, True):
        with pytest.raises(HostError, match=r"^r: "):
            read("r", json.dumps({**whole, "version": other}).encode())


@pytest.mark.parametrize(("data", "read"), RECORDS.values(), ids=RECORDS)
def test_half_a_record_is_none(data: bytes, read: Callable[[str, bytes], Any]) -> None:
    for length in range(0, len(data), 7):
        with pytest.raises(HostError, match=r"^r: "):
            read("r", data[:length])


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[]", b"null", b"1", b'"x"', b"[" * 100_000])
@pytest.mark.parametrize("read", [read for _, read in RECORDS.values()], ids=RECORDS)
def test_what_is_no_record(data: bytes, read: Callable[[str, bytes], Any]) -> None:
    with pytest.raises(HostError, match=r"^r: "):
        read("r", data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rings": []}, "a rollout needs at least one ring"),
        ({"rings": [json.loads(WHOLE.to_json())["rings"][0]] * 2}, "ring 'one' comes twice"),
        ({"serial": -1}, "serial: expected a whole number"),
        ({"serial": True}, "serial: expected a whole number"),
        ({"serial": 1e30}, "serial: expected a whole number"),
        ({"hosts": {"a": "legacy"}}, "hosts: a: expected one of off, observe, annex, native, found \"legacy\""),
        ({"domains": {"A": "off"}}, "'A' is not a domain's uuid"),
        ({"domains": {DOMAIN.upper(): "off"}}, "is not written as uuids are"),
        ({"thresholds": {"least_migrations": 1}}, "thresholds: most_failures is missing"),
        ({"history": [{}]}, r"history\[0\]: at is missing"),
    ],
)  # fmt: skip
def test_what_no_rollout_says(change: dict[str, Any], said: str) -> None:
    with pytest.raises(HostError, match=said):
        Rollout.from_json("r", json.dumps({**json.loads(WHOLE.to_json()), **change}).encode())


def test_the_history_ends_somewhere() -> None:
    long = Rollout(1, WHOLE.rings, history=tuple(Change(str(number), "", "") for number in range(5000)))
    kept = Rollout.from_json("r", long.to_json()).history
    assert len(kept) < 1000
    assert kept[-1].at == "4999"


@settings(max_examples=settings().max_examples // 5)
@given(some.uuids())
def test_a_domain_stays_in_its_part(domain: Any) -> None:
    part = bucket(str(domain))
    assert 0 <= part <= 99
    assert bucket(str(domain).upper()) == bucket(domain.hex) == part
    # At the boundary: the percentage that is its part leaves it out, one more takes it in, and so does any above.
    chosen = [Canaries(percent).include((), str(domain)) for percent in range(101)]
    assert chosen == [percent > part for percent in range(101)]


def test_parts_are_of_about_the_same_size() -> None:
    parts = [bucket(f"00000000-0000-4000-8000-{number:012x}") for number in range(5000)]
    assert set(parts) == set(range(100))
    assert max(map(parts.count, range(100))) < 2 * 50
