# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a host is the only one of its name in the cluster: two of one name overwrite what the other told.

Every run of a daemon signs ``names/NAME`` with a number of its own, and looks now and then whether it still stands
there. Who finds another's number over its own knows that the other lives. A number that was there before may be that
of a run which was killed: until its lease is over, nobody can tell.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Final

from qmpfilter.cluster.board import Board
from qmpfilter.cluster.store import Lease

__all__ = ["OwnName"]


class OwnName:
    """A host's name in one run of its daemon.

    :param seconds: for which a name stays signed that nobody signs again: the host's lease
    :ivar shared: why the name is not this host's alone, a sentence; empty as far as is known
    :ivar doubted: it may be somebody else's, too
    """

    def __init__(self, board: Board, name: str, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.shared = ""
        self.doubted = True
        self._board = board
        self._name = name
        self._seconds = seconds
        self._now = now
        self._signature: Final = uuid.uuid4().hex
        self._signed = False
        self._foreign_until = now()

    def look(self, lease: Lease) -> None:
        """Look who signed it, and sign it.

        :raises StoreAwayError: the store cannot be reached
        :raises ChangedError: the lease ran out
        """
        found = self._board.signature(self._name)
        if found not in ("", self._signature):
            self._foreign_until = self._now() + self._seconds
            if self._signed:
                self.shared = (
                    f"another host of this cluster is named {self._name}, too: give each a name of its own "
                    "([cluster] name)"
                )
        self.doubted = self._now() < self._foreign_until
        if not self.doubted:
            self.shared = ""
        if found != self._signature:
            self._board.sign(self._name, self._signature, lease)
            self._signed = True
