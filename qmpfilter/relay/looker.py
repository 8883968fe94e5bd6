# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relay asks of whoever reads its main channel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from qmpfilter.filter.gate import Piece

__all__ = ["Looker"]


class Looker(Protocol):
    """Who looks into the main channel: :class:`~qmpfilter.filter.gate.Gate`, which says what its methods do."""

    return_path: bool
    postcopy: bool
    between_sections: bool

    @property
    def admitted(self) -> bool:
        """Nothing that was seen so far speaks against this kind of migration."""

    @property
    def holding(self) -> bool:
        """Bytes of the tail were taken that are not decided yet."""

    def accept(self) -> bool:
        """The source has connected: whether all that it sends passes unread."""

    def pass_pages(self, data: memoryview) -> bool:
        """Whether the next bytes of the source are guest memory alone: they are taken then, and go on as they are."""

    def receive_data(self, data: memoryview) -> Iterable[Piece]:
        """The next bytes of the source, and what may go on. Where it begins to hold, a piece comes before anything
        that may wait, if need be one without bytes."""

    def receive_eof(self) -> Iterable[Piece]:
        """The source has closed its side, and what may go on."""
