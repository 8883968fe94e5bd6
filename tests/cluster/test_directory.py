# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody else leaves in a store's directory, damages there, or holds locked."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from qmpfilter.cluster import directory
from qmpfilter.cluster.directory import DirectoryStore
from qmpfilter.errors import StoreAwayError

SECONDS = 30.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "store").touch()
    return tmp_path


@pytest.fixture
def store(place: Path) -> DirectoryStore:
    return DirectoryStore(place, SECONDS)


def age(place: Path, seconds: float) -> None:
    """Let all leases be older."""
    for lease in (place / "leases").glob("[!.]*"):
        then = lease.stat().st_mtime - seconds
        os.utime(lease, (then, then))


def test_nobody_else_reads_it(place: Path, store: DirectoryStore) -> None:
    store.put_always("hosts/a", b"", store.lease(60))
    for path in (place / "entries" / "hosts,a", *(place / "leases").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("damage", "data"),
    [
        (lambda content: b"", b""),
        (lambda content: content[:19], b"qmpfilter-entry 1 -\n"[:19]),
        (lambda content: content[:-2], b"da"),
        (lambda content: content + b"!", b"data!"),
        (lambda content: b"\0" * 4096, b"\0" * 4096),
        (lambda content: content.replace(b"1", b"9" * 20), b"qmpfilter-entry 99999999999999999999 -\ndata"),
        (lambda content: b"by hand", b"by hand"),
    ],
    ids=["empty", "short head", "short data", "longer", "zeros", "huge number", "by hand"],
)  # fmt: skip
def test_an_entry_changed_by_hand_is_one_with_odd_data(
    place: Path, store: DirectoryStore, damage: Callable[[bytes], bytes], data: bytes
) -> None:
    before = store.put_always("hosts/a", b"data")
    cursor = store.watch("hosts", None, 0).cursor
    file = place / "entries" / "hosts,a"
    file.write_bytes(damage(file.read_bytes()))
    odd = store.get("hosts/a")
    assert odd is not None
    assert odd.data == data
    assert odd.revision != before.revision
    assert store.watch("hosts", cursor, 0).changed
    whole = store.put("hosts/a", b"data", unless_changed=odd.revision)
    assert store.entries("") == [whole]
    assert whole.revision not in (before.revision, odd.revision)


def test_what_is_no_entry_is_not_seen(place: Path, store: DirectoryStore) -> None:
    good = store.put_always("hosts/a", b"")
    entries = place / "entries"
    (entries / "not a key").write_bytes(b"")
    (entries / "hosts,").write_bytes(b"")
    (entries / ("." + "0" * 32)).write_bytes(b"half")
    (entries / "a-link").symlink_to("/etc/hostname")
    (entries / "astray").symlink_to("/nowhere")
    (entries / "a-directory").mkdir()
    os.mkfifo(entries / "a-pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(entries / "a-socket"))
    os.mkfifo(place / "leases" / "a-pipe")
    (place / "leases" / ("1" * 32)).mkdir()
    assert store.entries("") == [good]
    store.lease(60).end()
    assert store.entries("") == [good]
    assert not (entries / ("." + "0" * 32)).exists()
    assert store.get("a-pipe") is None
    store.put("a-pipe", b"now", unless_changed=None)
    with pytest.raises(StoreAwayError, match="Is a directory"):
        store.put("a-directory", b"", unless_changed=None)
    assert len(store.entries("")) == 2


@pytest.mark.parametrize("counter", [b"", b"garbage", b"\0" * 19, b"-5", b"000000000000000000\n", b"9" * 40])
def test_a_damaged_counter_repeats_no_revision(place: Path, store: DirectoryStore, counter: bytes) -> None:
    seen = {store.put_always("n", b"same").revision for _ in range(3)}
    cursor = store.watch("", None, 0).cursor
    (place / "store").write_bytes(counter)
    assert not store.watch("", cursor, 0).changed
    for _ in range(3):
        seen.add(store.put_always("n", b"same").revision)
        assert store.watch("", cursor, 0).changed
    assert len(seen) == 6


def test_leases_go_by_the_clock_of_the_directory(place: Path, store: DirectoryStore) -> None:
    lease = store.lease(60)
    store.put_always("hosts/a", b"", lease)
    age(place, 50)
    assert store.get("hosts/a")
    assert lease.keep_alive()
    age(place, 50)
    assert store.get("hosts/a")
    age(place, 50)
    assert store.get("hosts/a") is None
    # What is over is removed by the next one that begins.
    assert len(list((place / "leases").glob("[!.]*"))) == len(list((place / "entries").iterdir())) == 1
    store.lease(60)
    assert len(list((place / "leases").glob("[!.]*"))) == 1
    assert list((place / "entries").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"soon", b"-1", b"1e9", b"\xff"])
def test_a_damaged_lease_has_run_out(place: Path, store: DirectoryStore, content: bytes) -> None:
    lease = store.lease(60)
    store.put_always("hosts/a", b"", lease)
    next((place / "leases").glob("[!.]*")).write_bytes(content)
    assert store.get("hosts/a") is None
    assert not lease.keep_alive()


def test_who_holds_the_lock_delays_writers_only(place: Path) -> None:
    store = DirectoryStore(place, 0.05)
    entry = store.put_always("a", b"")
    with (place / "store").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert store.get("a") == entry
        with pytest.raises(StoreAwayError, match=r"somebody has been writing for longer than 0\.05 s"):
            store.put_always("a", b"x")
    store.put_always("a", b"x")


def test_an_empty_directory_is_no_empty_store(tmp_path: Path) -> None:
    with pytest.raises(StoreAwayError, match=r"no store is there\. Is it mounted"):
        DirectoryStore(tmp_path, SECONDS).entries("")
    with pytest.raises(StoreAwayError, match="no store is there"):
        DirectoryStore(tmp_path, SECONDS).put_always("a", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreAwayError, match=r"this store is no use: Not a directory"):
        DirectoryStore(tmp_path / "file", SECONDS).get("a")


def test_a_switch_reaches_who_watches_well_within_five_seconds() -> None:
    assert directory._POLL_SECONDS <= 2
