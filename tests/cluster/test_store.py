# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for a cluster's store, whichever it is: in a directory, or in etcd."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qmpfilter.cluster import directory, etcd
from qmpfilter.cluster.address import Access, open_store
from qmpfilter.cluster.store import LARGEST_DATA, LONGEST_KEY, Entry, Store
from qmpfilter.errors import ChangedError, HostError, StoreAwayError
from tests.helpers.counting import count_up, count_up_at
from tests.helpers.etcd import Certificates, Etcd
from tests.lab.inhost.waiting import wait_until

pytestmark = pytest.mark.lab

SECONDS = 60.0


@dataclass
class Place:
    """Where a store is, and how it goes away and comes back."""

    address: str
    access: Access
    away: Callable[[], object]
    back: Callable[[], object]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    base = tmp_path_factory.mktemp("etcd")
    with Etcd(base / "server", Certificates(base / "certificates")) as server:
        yield server


@pytest.fixture(params=["dir", "etcd"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(directory, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(directory, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(etcd, "_POLL_SECONDS", 0.01)
    if request.param == "etcd":
        server: Etcd = request.getfixturevalue("server")
        # A cluster of its own for each test.
        return Place(f"{server.address}/{tmp_path.name}", server.access, server.kill, server.start)
    here, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    here.mkdir()
    (here / "store").touch()
    return Place(f"dir:{here}", Access(seconds=20.0), lambda: here.rename(elsewhere), lambda: elsewhere.rename(here))


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    store = open_store(place.address, place.access)
    yield store
    store.close()


def found(store: Store, prefix: str = "") -> dict[str, bytes]:
    return {entry.key: entry.data for entry in store.entries(prefix)}


def test_what_was_put_is_there(store: Store, place: Place) -> None:
    assert store.get("hosts/a") is None
    first = store.put("hosts/a", b"one", unless_changed=None)
    assert store.get("hosts/a") == first == ("hosts/a", b"one", first.revision)
    second = store.put("hosts/a", b"", unless_changed=first.revision)
    third = store.put_always("hosts/a", b"one")
    assert open_store(place.address, place.access).get("hosts/a") == third
    store.delete("hosts/a", unless_changed=third.revision)
    assert store.get("hosts/a") is None
    again = store.put("hosts/a", b"one", unless_changed=None)
    assert len({one.revision for one in (first, second, third, again)}) == 4


def test_who_comes_second_writes_nothing(store: Store) -> None:
    first = store.put("rollout", b"first", unless_changed=None)
    with pytest.raises(ChangedError, match=r"^rollout: somebody else changed it in the meantime"):
        store.put("rollout", b"mine", unless_changed=None)
    second = store.put_always("rollout", b"second")
    for act in (
        lambda: store.put("rollout", b"mine", unless_changed=first.revision),
        lambda: store.put("rollout", b"mine", unless_changed="of another store"),
        lambda: store.put("other", b"mine", unless_changed=first.revision),
        lambda: store.delete("rollout", unless_changed=first.revision),
        lambda: store.delete("other", unless_changed=first.revision),
    ):
        with pytest.raises(ChangedError):
            act()
    assert store.entries("") == [second]


def test_entries_below_a_prefix(store: Store) -> None:
    for key in ("b", "a/x", "a", "a/y/z", "a.b", "a0", "ab/c", "B/x", "a/x.y"):
        store.put_always(key, key.encode())
    assert list(found(store, "a")) == ["a/x", "a/x.y", "a/y/z"]
    assert found(store, "a/y") == {"a/y/z": b"a/y/z"}
    assert found(store, "nobody") == found(store, "b") == {}
    assert list(found(store)) == sorted(["b", "a/x", "a", "a/y/z", "a.b", "a0", "ab/c", "B/x", "a/x.y"])


@pytest.mark.parametrize(
    "key",
    ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.b", "a b", "a,b", "a\n", "a\0b", "a*", "ä", "a\\b",
     "%2e%2e", "~", "$(id)", "'", "k" * (LONGEST_KEY + 1)],
)  # fmt: skip
def test_keys_that_none_takes(store: Store, key: str) -> None:
    lease = store.lease(60)
    for act in (
        lambda: store.get(key),
        lambda: store.put(key, b"", unless_changed=None),
        lambda: store.put_always(key, b"", lease),
        lambda: store.delete(key, unless_changed="1"),
        # Below nothing is everything.
        *((lambda: store.entries(key), lambda: store.watch(key, None, 0)) if key else ()),
    ):
        with pytest.raises(HostError, match="is no key of a store"):
            act()
    assert store.entries("") == []


def test_the_longest_and_the_largest(store: Store) -> None:
    key, data = "k" * LONGEST_KEY, random.Random(1).randbytes(LARGEST_DATA)
    assert store.put_always(key, data) == store.get(key)
    with pytest.raises(HostError, match="too many for one entry"):
        store.put_always(key, data + b"x")
    assert store.entries("")[0].data == data


def test_many_operators_lose_no_update(place: Place, store: Store) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers: list[threading.Thread | multiprocessing.process.BaseProcess] = [
        *(threading.Thread(target=count_up, args=(store, "n", 5)) for _ in range(2)),
        threading.Thread(target=count_up, args=(open_store(place.address, place.access), "n", 5)),
        *(spawn.Process(target=count_up_at, args=(place.address, place.access, "n", 5)) for _ in range(2)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SECONDS)
    assert found(store) == {"n": b"25"}


def test_a_lease_that_runs_out_takes_its_entries_along(store: Store) -> None:
    short, long = store.lease(1), store.lease(3600)
    store.put_always("hosts/gone", b"", short)
    store.put_always("hosts/too", b"", short)
    store.put_always("hosts/there", b"", long)
    store.put_always("hosts/saved", b"", short)
    store.put_always("hosts/saved", b"", long)
    assert short.seconds >= 1
    assert store.watch("hosts", store.watch("hosts", None, 0).cursor, SECONDS).changed
    wait_until(lambda: list(found(store)) == ["hosts/saved", "hosts/there"], SECONDS, "the end of a lease")
    assert long.keep_alive()
    assert not short.keep_alive()
    with pytest.raises(ChangedError, match=r"^hosts/gone: the lease ran out"):
        store.put_always("hosts/gone", b"", short)
    assert store.get("hosts/gone") is None
    store.put("hosts/gone", b"", unless_changed=None)


def test_a_lease_is_kept_alive(store: Store) -> None:
    kept, other = store.lease(2), store.lease(2)
    store.put_always("hosts/kept", b"", kept)
    store.put_always("hosts/other", b"", other)
    while "hosts/other" in found(store):
        assert kept.keep_alive()
    assert found(store) == {"hosts/kept": b""}


def test_a_lease_is_ended(store: Store) -> None:
    lease = store.lease(3600)
    store.put_always("hosts/a", b"", lease)
    cursor = store.watch("hosts", None, 0).cursor
    lease.end()
    assert store.watch("hosts", cursor, 0).changed
    assert store.entries("") == []
    lease.end()
    assert not lease.keep_alive()


def test_a_watch_waits_for_a_change(store: Store, place: Place) -> None:
    changed, cursor = store.watch("rollout", None, SECONDS)
    assert changed
    assert store.watch("rollout", cursor, 0) == (False, cursor)
    store.put_always("hosts/a", b"")
    assert store.watch("rollout", cursor, 0.1) == (False, cursor)
    writer = threading.Timer(0.1, store.put_always, ("rollout/current", b""))
    writer.start()
    assert store.watch("rollout", cursor, SECONDS).changed
    writer.join(SECONDS)
    # Also for somebody else, who was not there when it changed.
    assert open_store(place.address, place.access).watch("rollout", cursor, SECONDS).changed


@pytest.mark.parametrize("seed", range(3))
def test_no_difference_escapes_a_watch(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    cursors: dict[str, tuple[Entry, ...]] = {}
    for _ in range(12):
        for _ in range(chance.randint(0, 3)):
            key = chance.choice(("p/a", "p/b", "p/c"))
            entry = store.get(key)
            if entry is not None and chance.random() < 0.5:
                store.delete(key, unless_changed=entry.revision)
            else:
                store.put_always(key, b"same")
        state, cursor = tuple(store.entries("p")), store.watch("p", None, 0).cursor
        for old, before in cursors.items():
            assert store.watch("p", old, 0).changed == (before != state)
        cursors[cursor] = state


def test_who_watches_sees_the_last_of_many(store: Store, place: Place) -> None:
    def write() -> None:
        for number in range(50):
            store.put_always("n", b"%d" % number)

    watcher = open_store(place.address, place.access)
    writer = threading.Thread(target=write)
    writer.start()
    cursor, seen = None, b""
    while seen != b"49":
        changed, cursor = watcher.watch("", cursor, SECONDS)
        assert changed
        entry = watcher.get("n")
        seen = entry.data if entry else b""
    writer.join(SECONDS)
    assert not watcher.watch("", watcher.watch("", cursor, 0).cursor, 0).changed


def test_a_watch_ends_with_its_store(store: Store) -> None:
    cursor = store.watch("", None, 0).cursor
    closer = threading.Timer(0.1, store.close)
    closer.start()
    assert store.watch("", cursor, SECONDS) == (False, cursor)
    closer.join(SECONDS)


def test_a_store_goes_away_and_comes_back(store: Store, place: Place) -> None:
    lease = store.lease(3600)
    before = store.put_always("rollout/current", b"")
    there = store.put_always("hosts/a", b"", lease)
    cursor = store.watch("rollout", None, 0).cursor
    place.away()
    try:
        for act in (
            lambda: store.get("rollout/current"),
            lambda: store.entries(""),
            lambda: store.put("rollout/current", b"x", unless_changed=before.revision),
            lambda: store.put_always("rollout/current", b"x"),
            lambda: store.put_always("hosts/a", b"x", lease),
            lambda: store.delete("rollout/current", unless_changed=before.revision),
            lambda: store.lease(60),
            lambda: store.watch("rollout", cursor, SECONDS),
            lease.keep_alive,
            lease.end,
        ):
            with pytest.raises(StoreAwayError):
                act()
    finally:
        place.back()
    assert store.entries("") == [there, before]
    assert not store.watch("rollout", cursor, 0).changed
    assert lease.keep_alive()
    after = store.put("rollout/current", b"y", unless_changed=before.revision)
    assert after.revision != before.revision


def test_a_watch_hears_that_the_store_goes_away(store: Store, place: Place) -> None:
    cursor = store.watch("", None, 0).cursor
    goes = threading.Timer(0.1, place.away)
    goes.start()
    try:
        with pytest.raises(StoreAwayError):
            store.watch("", cursor, SECONDS)
    finally:
        goes.join(SECONDS)
        place.back()
