# SPDX-License-Identifier: GPL-2.0-or-later
"""What works on a cluster's store from several threads or processes at once."""

from __future__ import annotations

from qmpfilter.cluster.address import Access, open_store
from qmpfilter.cluster.store import Store
from qmpfilter.errors import ChangedError

__all__ = ["count_up", "count_up_at"]


def count_up(store: Store, key: str, times: int) -> None:
    """Add one to a number, so many times, with others that do the same."""
    while times:
        found = store.get(key)
        number = int(found.data) if found else 0
        try:
            store.put(key, b"%d" % (number + 1), unless_changed=found.revision if found else None)
        except ChangedError:
            continue
        times -= 1


def count_up_at(address: str, access: Access, key: str, times: int) -> None:
    """The same in a process of its own."""
    count_up(open_store(address, access), key, times)
