# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cluster's store can do, whatever keeps it: a directory (:mod:`.directory`) or etcd (:mod:`.etcd`).

A store holds entries: bytes under keys. It judges no bytes: whoever reads a record checks it. Every call blocks, may
come from any thread, and is over within the store's deadline, be it with :class:`StoreAwayError`.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Protocol

from qmpfilter.errors import HostError

__all__ = [
    "LARGEST_DATA",
    "LONGEST_KEY",
    "Entry",
    "Lease",
    "NumberedLease",
    "Sight",
    "Store",
    "checked_data",
    "checked_key",
]

LONGEST_KEY: Final = 200
"""Characters of a key; a directory keeps an entry in one file, named by its key."""

LARGEST_DATA: Final = 1 << 20
"""Bytes of an entry; etcd takes no request above 1.5 MiB, and sees these in base64."""

_KEY: Final = re.compile(r"[A-Za-z0-9_:@-][A-Za-z0-9._:@-]*(/[A-Za-z0-9_:@-][A-Za-z0-9._:@-]*)*", re.ASCII)


class Entry(NamedTuple):
    """An entry as it was read or written.

    :param revision: differs after every change of the entry, also when it was deleted and put again
    """

    key: str
    data: bytes
    revision: str


class Sight(NamedTuple):
    """What a watch saw.

    :param changed: something may have changed since the cursor that the watch was given
    :param cursor: for the next watch of the same prefix. It is older than whatever is read after it was returned
    """

    changed: bool
    cursor: str


class Lease(Protocol):
    """How long entries put with it stay: until it ran out, or was ended."""

    @property
    def seconds(self) -> float:
        """How long it stays without being kept alive."""

    def keep_alive(self) -> bool:
        """Begin its time anew; False says that it ran out, and its entries are gone.

        :raises StoreAwayError: the store cannot be reached
        """

    def end(self) -> None:
        """Let its entries vanish now.

        :raises StoreAwayError: the store cannot be reached; they vanish when the lease runs out
        """


class _Leases(Protocol):
    def renew(self, identity: str) -> bool: ...

    def end(self, identity: str) -> None: ...


class NumberedLease:
    """A :class:`Lease` that its store knows by a number.

    :param store: renews and ends it
    """

    def __init__(self, store: _Leases, identity: str, seconds: float) -> None:
        self._store = store
        self.identity = identity
        self.seconds = seconds

    def keep_alive(self) -> bool:
        return self._store.renew(self.identity)

    def end(self) -> None:
        self._store.end(self.identity)


class Store(Protocol):
    """Entries that all hosts of a cluster see.

    Every method raises :class:`StoreAwayError` when the store cannot be reached, :class:`HostError` for a key or data
    that it does not take.
    """

    def get(self, key: str) -> Entry | None:
        """The entry, as the last put that returned anywhere left it; None if there is none."""

    def entries(self, prefix: str) -> list[Entry]:
        """All entries whose keys begin with ``prefix/``, sorted by key; of an empty prefix, every entry.

        They need not be of the same moment.
        """

    def put(self, key: str, data: bytes, *, unless_changed: str | None) -> Entry:
        """Write an entry if it still is of this revision; None: if there is none yet.

        :raises ChangedError: somebody else was first; nothing was written
        :raises StoreAwayError: it may be written or not: get it to know
        """

    def put_always(self, key: str, data: bytes, lease: Lease | None = None) -> Entry:
        """Write an entry whatever is there.

        :param lease: from this store; the entry vanishes with it
        :raises ChangedError: the lease ran out
        """

    def delete(self, key: str, *, unless_changed: str) -> None:
        """Remove an entry if it still is of this revision.

        :raises ChangedError: somebody else was first; nothing was removed
        :raises StoreAwayError: it may be there or not: get it to know
        """

    def lease(self, seconds: float) -> Lease:
        """A new lease that stays for so long, rounded up to what the store can do."""

    def watch(self, prefix: str, since: str | None, seconds: float) -> Sight:
        """Wait until something below the prefix differs from what it was at a cursor.

        Returns at once if that is so already, at the latest after the seconds. Nothing is missed: whoever reads after
        it returned, and watches again from its cursor, hears of everything later. A cursor stays good for ever, also
        in another process; without one, everything may have changed. A lease that runs out is a change.
        """

    def close(self) -> None:
        """Let go of everything; a watch in another thread returns soon. Nothing may be called afterwards."""


def checked_key(key: str) -> str:
    """The key, if it is one: parts of ``A-Z a-z 0-9 . _ : @ -`` with slashes between, none beginning with a dot.

    :raises HostError: it is not
    """
    if len(key) > LONGEST_KEY or not _KEY.fullmatch(key):
        raise HostError(
            f"{key!r} is no key of a store: it takes parts of letters, digits and ._:@- with slashes between them, "
            f"none of which begins with a dot, {LONGEST_KEY} characters at most."
        )
    return key


def checked_data(key: str, data: bytes) -> bytes:
    """The data, if it is not too much.

    :raises HostError: it is
    """
    if len(data) > LARGEST_DATA:
        raise HostError(f"{key}: {len(data)} bytes are too many for one entry of a store: {LARGEST_DATA} at most.")
    return data
