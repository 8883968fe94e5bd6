# SPDX-License-Identifier: GPL-2.0-or-later
"""A cluster's store in a directory, of one host or shared by all over NFS.

::

    store           empty at first: whoever writes locks it (flock), and counts the changes in it
    entries/a,b     the entry a/b: a line with its number and its lease, then the data; replaced as a whole
    leases/ID       how many seconds a lease stays after the file's last change
    leases/.now     touched to learn the time

Hosts' clocks differ, so none of them is asked: both times that a lease is judged by are times of files in the same
directory, which over NFS are the server's. Somebody else's files, links and damage are no entries, or entries with
odd data, which is for the reader of a record to judge as any other.

A directory that is not there, or holds no ``store``, is a store that is away, never an empty one: the place where a
share is not mounted looks just so. The deadline does not hold where the kernel itself waits, as for the server of an
NFS share that is mounted ``hard``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import re
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from qmpfilter.cluster.store import LARGEST_DATA, Entry, Lease, NumberedLease, Sight, checked_data, checked_key
from qmpfilter.errors import ChangedError, HostError, StoreAwayError
from qmpfilter.flock import locked_within

__all__ = ["DirectoryStore"]

_POLL_SECONDS: Final = 1.0
# Leases that ran out and files that were changed by hand count nothing.
_LOOK_SECONDS: Final = 5.0

_STORE: Final = "store"
_ENTRIES: Final = "entries"
_LEASES: Final = "leases"
_NOW: Final = f"{_LEASES}/.now"
_HEAD: Final = re.compile(rb"qmpfilter-entry ([0-9]{1,18}) ([0-9a-f]{32}|-)\n")
_LONGEST_HEAD: Final = 80
_IDENTITY: Final = re.compile("[0-9a-f]{32}")
_UNFINISHED: Final = re.compile("[.][0-9a-f]{32}")
# A counter of fixed width is overwritten as a whole.
_NUMBER: Final = b"%018d\n"

# A foreign file may be a link, or a pipe that nobody writes to.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _Kept(NamedTuple):
    """An entry's file."""

    number: int
    lease: str
    data: bytes
    revision: str


class DirectoryStore:
    """The store in a directory.

    :param seconds: how long it is waited for others who write
    """

    def __init__(self, directory: Path, seconds: float) -> None:
        self._directory = directory
        self._seconds = seconds
        self._closed = threading.Event()

    def get(self, key: str) -> Entry | None:
        name = _name(key)
        with self._reached() as place:
            kept = _live(place, name, _Leases(place))
        return Entry(key, kept.data, kept.revision) if kept else None

    def entries(self, prefix: str) -> list[Entry]:
        with self._reached() as place:
            return [Entry(key, kept.data, kept.revision) for key, kept in _below(place, prefix)]

    def put(self, key: str, data: bytes, *, unless_changed: str | None) -> Entry:
        name = _name(key)
        with self._locked() as (place, lock):
            _unless_changed(place, key, unless_changed)
            return _write(place, lock, name, checked_data(key, data), "-")

    def put_always(self, key: str, data: bytes, lease: Lease | None = None) -> Entry:
        name = _name(key)
        with self._locked() as (place, lock):
            identity = "-"
            if lease is not None:
                assert isinstance(lease, NumberedLease)
                identity = lease.identity
                if not _Leases(place).alive(identity):
                    raise ChangedError(f"{key}: the lease ran out before that; a new one is needed.")
            return _write(place, lock, name, checked_data(key, data), identity)

    def delete(self, key: str, *, unless_changed: str) -> None:
        name = _name(key)
        with self._locked() as (place, lock):
            _unless_changed(place, key, unless_changed)
            _remove(place, f"{_ENTRIES}/{name}")
            _count(place, lock)

    def lease(self, seconds: float) -> Lease:
        whole = math.ceil(seconds)
        identity = uuid.uuid4().hex
        with self._locked() as (place, lock):
            _sweep(place, lock)
            _replace(place, f"{_LEASES}/{identity}", b"%d\n" % whole)
        return NumberedLease(self, identity, whole)

    def watch(self, prefix: str, since: str | None, seconds: float) -> Sight:
        late = time.monotonic() + seconds
        counted, looked, cursor = b"", -math.inf, ""
        while True:
            with self._reached() as place:
                # Before the look: what comes after it counts further.
                now = _read(place, _STORE, len(_NUMBER % 0)) or b""
                if now != counted or time.monotonic() - looked >= _LOOK_SECONDS:
                    counted, looked, cursor = now, time.monotonic(), _cursor(place, prefix)
            if cursor != since:
                return Sight(True, cursor)
            # What comes in the last of these pauses is seen by the next watch.
            pause = max(0.0, min(late - time.monotonic(), _POLL_SECONDS))
            if self._closed.wait(pause) or time.monotonic() >= late:
                return Sight(False, cursor)

    def close(self) -> None:
        self._closed.set()

    def renew(self, identity: str) -> bool:
        """Begin a lease's time anew; False if it ran out."""
        with self._locked() as (place, _):
            if not _Leases(place).alive(identity):
                return False
            _touch(place, f"{_LEASES}/{identity}")
            return True

    def end(self, identity: str) -> None:
        """End a lease."""
        with self._locked() as (place, lock):
            _remove(place, f"{_LEASES}/{identity}")
            _sweep(place, lock)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[int]:
        """The directory, opened: it stays the same one for a whole call, whoever renames what."""
        try:
            place = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.stat(_STORE, dir_fd=place)
                yield place
            finally:
                os.close(place)
        except FileNotFoundError as error:
            raise StoreAwayError(
                f"{self._directory}: no store is there. Is it mounted? To begin one: touch {self._directory}/store"
            ) from error
        except OSError as error:
            raise StoreAwayError(f"{self._directory}: this store is no use: {error.strerror or error}.") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[tuple[int, int]]:
        """The directory, and its counter, which nobody else writes."""
        with self._reached() as place:
            lock = os.open(_STORE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            try:
                if not locked_within(lock, self._seconds):
                    raise StoreAwayError(
                        f"{self._directory}: somebody has been writing for longer than {self._seconds:g} s."
                    )
                for name in (_ENTRIES, _LEASES):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=place)
                yield place, lock
            finally:
                os.close(lock)


class _Leases:
    """Which leases have not run out, at one moment."""

    def __init__(self, place: int) -> None:
        self._place = place
        self._now: int | None = None

    def alive(self, identity: str) -> bool:
        descriptor = _opened(self._place, f"{_LEASES}/{identity}")
        if descriptor is None:
            return False
        try:
            seconds = os.read(descriptor, 20).strip()
            # Of an opened file NFS tells the truth, not what it remembers.
            changed = os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)
        if self._now is None:
            self._now = _touch(self._place, _NOW)
        return seconds.isdigit() and self._now - changed <= int(seconds) * 1_000_000_000


def _name(key: str) -> str:
    return checked_key(key).replace("/", ",")


def _unless_changed(place: int, key: str, revision: str | None) -> None:
    kept = _live(place, _name(key), _Leases(place))
    if (kept.revision if kept else None) != revision:
        raise ChangedError(f"{key}: somebody else changed it in the meantime.")


def _live(place: int, name: str, leases: _Leases) -> _Kept | None:
    """The entry in a file, unless its lease ran out."""
    kept = _kept(place, name)
    while kept is not None and kept.lease != "-" and not leases.alive(kept.lease):
        # It may have been given a new lease just before the old one ended.
        again = _kept(place, name)
        if again == kept:
            return None
        kept = again
    return kept


def _kept(place: int, name: str) -> _Kept | None:
    content = _read(place, f"{_ENTRIES}/{name}", _LONGEST_HEAD + LARGEST_DATA)
    if content is None:
        return None
    head = _HEAD.match(content)
    number, lease, start = (int(head[1]), head[2].decode(), head.end()) if head else (0, "-", 0)
    digest = hashlib.sha256(content).hexdigest()
    return _Kept(number, lease, content[start:], f"{number}-{digest[:16]}")


def _below(place: int, prefix: str) -> Iterator[tuple[str, _Kept]]:
    """Every entry below a prefix, sorted by key."""
    begin = f"{_name(prefix)}," if prefix else ""
    keys = {name.replace(",", "/"): name for name in _names(place, _ENTRIES) if name.startswith(begin)}
    leases = _Leases(place)
    for key, name in sorted(keys.items()):
        try:
            checked_key(key)
        except HostError:
            # Somebody else's file, or one that is just being written.
            continue
        kept = _live(place, name, leases)
        if kept is not None:
            yield key, kept


def _cursor(place: int, prefix: str) -> str:
    digest = hashlib.sha256()
    for key, kept in _below(place, prefix):
        digest.update(f"{key} {kept.revision}\n".encode())
    return digest.hexdigest()


def _names(place: int, directory: str) -> list[str]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    except FileNotFoundError:
        return []
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def _opened(place: int, name: str) -> int | None:
    """A regular file, opened; None if there is none of that name."""
    try:
        descriptor = os.open(name, _READ, dir_fd=place)
    except OSError as error:
        # ELOOP is a link, ENXIO a socket.
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _read(place: int, name: str, most: int) -> bytes | None:
    """A regular file's first bytes; None if there is none of that name."""
    descriptor = _opened(place, name)
    if descriptor is None:
        return None
    with open(descriptor, "rb", closefd=True) as file:
        return file.read(most)


def _write(place: int, lock: int, name: str, data: bytes, lease: str) -> Entry:
    key = name.replace(",", "/")
    kept = _kept(place, name)
    number = max(_counted(place, lock), kept.number if kept else 0) + 1
    _replace(place, f"{_ENTRIES}/{name}", b"qmpfilter-entry %d %s\n" % (number, lease.encode()) + data)
    _count(place, lock, number)
    written = _kept(place, name)
    assert written is not None
    return Entry(key, data, written.revision)


def _replace(place: int, name: str, content: bytes) -> None:
    """Write a file as a whole, on the disk when this returns."""
    directory = os.path.dirname(name)
    new = f"{directory}/.{uuid.uuid4().hex}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=place)
    try:
        with open(descriptor, "wb", closefd=True) as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.rename(new, name, src_dir_fd=place, dst_dir_fd=place)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=place)
        raise
    _sync(place, directory)


def _remove(place: int, name: str) -> None:
    # A directory there is none of the store's.
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=place)
    _sync(place, os.path.dirname(name))


def _sync(place: int, directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _touch(place: int, name: str) -> int:
    """Set a file's time to the one of whoever keeps it, which is returned in nanoseconds."""
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=place)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def _counted(place: int, lock: int) -> int:
    """How many changes there were; found again from the entries if the counter is new or damaged."""
    content = os.pread(lock, len(_NUMBER % 0), 0).strip()
    if content.isdigit():
        return int(content)
    kept = (_kept(place, name) for name in _names(place, _ENTRIES))
    return max((one.number for one in kept if one), default=0)


def _count(place: int, lock: int, number: int | None = None) -> None:
    """Let those who watch look; after what they are to see."""
    os.pwrite(lock, _NUMBER % (_counted(place, lock) + 1 if number is None else number), 0)
    os.fsync(lock)


def _sweep(place: int, lock: int) -> None:
    """Remove what is over: leases, their entries, and what was never written to its end."""
    leases = _Leases(place)
    for name in _names(place, _LEASES):
        if _UNFINISHED.fullmatch(name) or (_IDENTITY.fullmatch(name) and not leases.alive(name)):
            _remove(place, f"{_LEASES}/{name}")
    for name in _names(place, _ENTRIES):
        kept = _kept(place, name)
        if _UNFINISHED.fullmatch(name) or (kept and kept.lease != "-" and not leases.alive(kept.lease)):
            _remove(place, f"{_ENTRIES}/{name}")
    _count(place, lock)
