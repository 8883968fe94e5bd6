# SPDX-License-Identifier: GPL-2.0-or-later
"""Converts a stream with parser and rewriter, in any division, without any file."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.rewriter import Rewriter
from qmpfilter.wire.feed import NeedData
from qmpfilter.wire.parser import StreamParser
from tests.helpers.parse import pieces

__all__ = ["converted", "drain_into", "rewritten"]


def converted(stream: bytes, target: Carrier, chunks: int | Sequence[int] | None = None) -> bytes:
    """What becomes of a whole stream.

    :param chunks: feed so many bytes at a time; or cut at these offsets; or feed all at once
    :raises QmpfilterError: what the parser or the rewriter raises
    """
    return _at_once(stream, target) if chunks is None else rewritten(stream, target, chunks)[0]


@functools.lru_cache(maxsize=8)
def _at_once(stream: bytes, target: Carrier) -> bytes:
    return rewritten(stream, target)[0]


def rewritten(stream: bytes, target: Carrier, chunks: int | Sequence[int] | None = None) -> tuple[bytes, Rewriter]:
    """The same, with the rewriter that did it."""
    parser, rewriter, out = StreamParser(), Rewriter(target), bytearray()
    for piece in pieces(stream, chunks):
        parser.receive_data(piece)
        drain_into(out, parser, rewriter)
    parser.receive_eof()
    drain_into(out, parser, rewriter)
    rewriter.finish()
    return bytes(out), rewriter


def drain_into(out: bytearray, parser: StreamParser, rewriter: Rewriter) -> None:
    """Append what the rewriter lets go of all that the parser has to tell."""
    while not isinstance(event := parser.next_event(), NeedData):
        for piece in rewriter.take(event):
            out += piece
