# SPDX-License-Identifier: GPL-2.0-or-later
"""Bodies of iterables other than RAM that say themselves where they end.

Sources: dirty bitmaps, QEMU 10.2.2 migration/block-dirty-bitmap.c:86-107 and 372-465 (the comment
there says be64 granularity, the code writes be32); VFIO, hw/vfio/vfio-migration-internal.h:29-34 and
hw/vfio/migration.c:449-847.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from qmpfilter.errors import FramingError, UnsupportedError
from qmpfilter.wire.events import Event, IterableData
from qmpfilter.wire.feed import Feed, Steps
from qmpfilter.wire.framing import BE64

__all__ = ["DIRTY_BITMAP", "VFIO_SUFFIX", "VfioTag", "body_reader"]

DIRTY_BITMAP: Final = "dirty-bitmap"
VFIO_SUFFIX: Final = "/vfio"

_BITMAP_EOS: Final = 0x01
_BITMAP_ZEROES: Final = 0x02
_BITMAP_NAME: Final = 0x04
_BITMAP_NODE: Final = 0x08
_BITMAP_START: Final = 0x10
_BITMAP_COMPLETE: Final = 0x20
_BITMAP_BITS: Final = 0x40
_BITMAP_MORE_FLAGS: Final = 0x80
_BITMAP_KNOWN: Final = 0x7F


class VfioTag(enum.IntEnum):
    """be64 tags of VFIO device state."""

    END_OF_STATE = 0xFFFFFFFFEF100001
    DEV_CONFIG_STATE = 0xFFFFFFFFEF100002
    DEV_SETUP_STATE = 0xFFFFFFFFEF100003
    DEV_DATA_STATE = 0xFFFFFFFFEF100004
    DEV_INIT_DATA_SENT = 0xFFFFFFFFEF100005
    DEV_CONFIG_LOAD_READY = 0xFFFFFFFFEF100006


_VFIO_LAST: Final = (VfioTag.END_OF_STATE, VfioTag.DEV_INIT_DATA_SENT, VfioTag.DEV_CONFIG_LOAD_READY)

BodyReader = Callable[[Feed, str], Steps[Event, None]]


def body_reader(idstr: str, offset: int) -> BodyReader:
    """The reader for the bodies of an iterable.

    :raises UnsupportedError: an iterable whose end cannot be told without its device's code
    """
    if idstr == DIRTY_BITMAP:
        return _dirty_bitmap
    if idstr.endswith(VFIO_SUFFIX):
        return _vfio
    raise UnsupportedError(
        offset,
        "an iterable that can be delimited (ram, dirty-bitmap, a VFIO device); unplug the device that writes "
        "this one, or migrate without the filter",
        f"{idstr!r}",
    )


def _dirty_bitmap(feed: Feed, idstr: str) -> Steps[Event, None]:
    while True:
        offset = feed.offset
        raw, flags = yield from _bitmap_flags(feed)
        if flags & _BITMAP_EOS:
            if flags != _BITMAP_EOS:
                raise FramingError(offset, "a dirty bitmap chunk without other flags than EOS", raw)
            yield IterableData(offset, raw, idstr)
            return
        if flags & ~_BITMAP_KNOWN:
            raise FramingError(offset, "known dirty bitmap flags", raw)
        for flag, what in ((_BITMAP_NODE, "a block node's alias"), (_BITMAP_NAME, "a dirty bitmap's alias")):
            if flags & flag:
                length = yield from feed.take(1, f"{what}, its length")
                raw += length + (yield from feed.take(length[0], what))
        if flags & _BITMAP_START:
            raw += yield from feed.take(5, "a dirty bitmap's granularity and flags")
        data = 0
        if flags & _BITMAP_BITS:
            raw += yield from feed.take(12, "a dirty bitmap's sector range")
            if not flags & _BITMAP_ZEROES:
                size = yield from feed.take(8, "a dirty bitmap's size in bytes")
                raw += size
                data = BE64.unpack(size)[0]
        yield IterableData(offset, raw, idstr)
        yield from _bulk(feed, idstr, data)


def _bitmap_flags(feed: Feed) -> Steps[Event, tuple[bytes, int]]:
    """One, two or four bytes of flags, each longer form announced by a top bit (block-dirty-bitmap.c:372-395)."""
    raw = yield from feed.take(1, "dirty bitmap flags")
    if raw[0] & _BITMAP_MORE_FLAGS:
        raw += yield from feed.take(1, "dirty bitmap flags")
        if raw[1] & _BITMAP_MORE_FLAGS:
            raw += yield from feed.take(2, "dirty bitmap flags")
    return raw, int.from_bytes(raw, "big")


def _vfio(feed: Feed, idstr: str) -> Steps[Event, None]:
    while True:
        offset = feed.offset
        raw = yield from feed.take(8, "a VFIO tag")
        tag = BE64.unpack(raw)[0]
        if tag in _VFIO_LAST:
            yield IterableData(offset, raw, idstr)
            return
        if tag == VfioTag.DEV_SETUP_STATE:
            yield IterableData(offset, raw, idstr)
        elif tag == VfioTag.DEV_DATA_STATE:
            size = yield from feed.take(8, "the size of VFIO device data")
            yield IterableData(offset, raw + size, idstr)
            yield from _bulk(feed, idstr, BE64.unpack(size)[0])
        else:
            # DEV_CONFIG_STATE belongs into the device's FULL section, which vmdesc delimits.
            raise FramingError(offset, "a VFIO tag that may stand in START, PART or END", raw)


def _bulk(feed: Feed, idstr: str, count: int) -> Steps[Event, None]:
    while count:
        offset = feed.offset
        raw = yield from feed.take_part(count, idstr)
        count -= len(raw)
        yield IterableData(offset, raw, idstr)
