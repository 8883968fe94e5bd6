# SPDX-License-Identifier: GPL-2.0-or-later
"""The body of a `ram` section: records of be64 words, pages that are passed over and never looked at.

Source: QEMU 10.2.2 migration/ram.h:55-62, migration/ram.c (writers 523-703, 3134-3207; loader
4265-4409), and for COMPRESS_PAGE 7.2 migration/qemu-file.c:853-871. A word's high bits are an offset
into the RAM block in bytes, its low 12 bits are flags (target pages are 4 KiB on x86).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from qmpfilter.errors import FramingError, LimitError, TruncatedError
from qmpfilter.wire.events import Event, RamBlock, RamBlocks, RamRecords
from qmpfilter.wire.feed import NEED_DATA, Feed, Steps
from qmpfilter.wire.framing import BE16, BE32, BE64
from qmpfilter.wire.names import name_at

__all__ = ["IDSTR", "PAGE_SIZE", "VERSION", "Ram", "RamFlag", "pass_over", "ram_body"]

IDSTR: Final = "ram"
VERSION: Final = 4  # ram.c:4777; the loader accepts no other
PAGE_SIZE: Final = 4096

_FLAG_BITS: Final = PAGE_SIZE - 1
_MAX_BLOCKS: Final = 4096  # KVM itself takes 32764 memory slots; machines have some dozens of blocks
_MAX_XBZRLE: Final = PAGE_SIZE  # ram.c:3498: a longer record is refused by the loader
_MAX_COMPRESSED: Final = 2 * PAGE_SIZE  # compressBound() of one page is less


class RamFlag(enum.IntFlag):
    """Flags of a RAM word (ram.h:55-62)."""

    ZERO = 0x002
    MEM_SIZE = 0x004
    PAGE = 0x008
    EOS = 0x010
    CONTINUE = 0x020
    XBZRLE = 0x040
    HOOK = 0x080
    COMPRESS_PAGE = 0x100
    MULTIFD_FLUSH = 0x200


@dataclass(slots=True)
class Ram:
    """What is known of the guest's RAM in one stream.

    :param blocks: the MEM_SIZE list by name, once it was read
    :param current: the block that CONTINUE refers to; it is remembered across sections
    :param gpa_listed: capability x-ignore-shared: each block of the list carries its address
    :param page_sizes_listed: a block of the list may carry its page size (postcopy with huge pages)
    :param pending: bytes of the last record's page content that were not passed over yet
    """

    blocks: dict[str, RamBlock] = field(default_factory=dict)
    current: str = ""
    gpa_listed: bool = False
    page_sizes_listed: bool = False
    pending: int = 0


# Plain numbers: an operation on members of an enum costs as much as passing over twenty pages.
_ZERO: Final = int(RamFlag.ZERO)
_PAGE: Final = int(RamFlag.PAGE)
_XBZRLE: Final = int(RamFlag.XBZRLE)
_COMPRESS_PAGE: Final = int(RamFlag.COMPRESS_PAGE)
_CONTINUE: Final = int(RamFlag.CONTINUE)
_PAGE_KINDS: Final = (_ZERO, _PAGE, _XBZRLE, _COMPRESS_PAGE)

# An ordinary page of the same block as before, and a zero page likewise: nearly all of a stream.
_NEXT_PAGE: Final = _PAGE | _CONTINUE
_NEXT_ZERO: Final = _ZERO | _CONTINUE
_PAGE_STRIDE: Final = 8 + PAGE_SIZE
_ZERO_STRIDE: Final = 9

_NEXT_PAGE_BYTE: Final = bytes([_NEXT_PAGE])
_NEXT_ZERO_BYTE: Final = bytes([_NEXT_ZERO])
_LOW_NIBBLE: Final = bytes(value & 0x0F for value in range(256))
# What lies in a unix socket's buffer at once is some fifty pages.
_FIRST_STEP: Final = 64


def ram_body(feed: Feed, ram: Ram, *, listing: bool) -> Steps[Event, None]:
    """Consume a RAM body to the end of its EOS word.

    :param listing: True in a START section, the only one that may hold a MEM_SIZE record
    :raises FramingError: a word or a field that QEMU's loader would refuse, or RDMA's HOOK
    :raises TruncatedError: the input ends inside the body
    :raises LimitError: more blocks than any machine has, or an impossible record length
    """
    while True:
        while not feed.straddles() and feed.available:
            event = _run(feed, ram)
            if event is None:
                break
            yield event
        if ram.pending:
            if feed.straddles():
                yield RamRecords(feed.offset, (yield from _carried(feed, ram)), ram.current)
                continue
            if feed.closed:
                expected = f"{ram.pending} more bytes of a page of {ram.current!r}"
                raise TruncatedError(feed.offset, expected, "the end of input")
            yield NEED_DATA
            continue
        offset = feed.offset
        raw = yield from feed.take(8, "a RAM record's word")
        word = BE64.unpack(raw)[0]
        flags = word & _FLAG_BITS
        if flags & ~_CONTINUE in _PAGE_KINDS:
            yield (yield from _page_record(feed, ram, offset, raw, flags))
        elif word == RamFlag.EOS:
            yield RamRecords(offset, raw)
            return
        elif word == RamFlag.MULTIFD_FLUSH:
            yield RamRecords(offset, raw, multifd_flush=1)
        elif flags == RamFlag.MEM_SIZE and listing and not ram.blocks:
            yield (yield from _block_list(feed, ram, offset, raw))
        else:
            raise FramingError(offset, "a RAM record's word", raw)


def pass_over(view: memoryview, ram: Ram) -> bool:
    """Whether all of `view` is the rest of a page and more pages of the same block, the last perhaps cut.

    If so it is passed over; if not, nothing has happened.
    """
    if not ram.pending:
        return False
    end = ram.pending
    if end < len(view):
        end, _, _ = _scan(view, end)
    if end < len(view):
        return False
    ram.pending = end - len(view)
    return True


def _carried(feed: Feed, ram: Ram) -> Steps[Event, bytes | memoryview]:
    """The part of a page that the feed has carried over from an earlier buffer, because something before the
    page needed a look ahead or was given back."""
    part = yield from feed.take_available(ram.pending)
    ram.pending -= len(part)
    return part


def _run(feed: Feed, ram: Ram) -> RamRecords | None:
    """Pass over the rest of a page, and as many pages and zero pages of the same block as the buffer shows.

    None where the next record is of another kind or not wholly visible.
    """
    view, start = feed.view, feed.position
    end = start + ram.pending
    normal = zero = 0
    if end < len(view):
        end, normal, zero = _scan(view, end)
    if end == start:
        return None
    if not ram.current:
        word = bytes(view[start : start + 8])
        raise FramingError(feed.offset, "the first page record of the stream to name its block", word)
    ram.pending = max(0, end - len(view))
    offset = feed.offset
    return RamRecords(offset, feed.advance(min(end, len(view)) - start), ram.current, normal, zero)


def _scan(view: memoryview, position: int) -> tuple[int, int, int]:
    """Where the run of continued pages and zero pages at `position` ends, and how many of each it has.

    The end lies beyond the view if the last page does. A zero page counts only if its fill byte is
    visible and zero.
    """
    size = len(view)
    normal = zero = 0
    while size - position >= 8 and not view[position + 6] & 0x0F:
        flags = view[position + 7]
        if flags == _NEXT_PAGE:
            count = _equal_pages(view, position)
            normal += count
            position += count * _PAGE_STRIDE
        elif flags == _NEXT_ZERO and size - position > 8 and not view[position + 8]:
            count = _equal_zeros(view, position)
            zero += count
            position += count * _ZERO_STRIDE
        else:
            break
    return position, normal, zero


def _equal_pages(view: memoryview, position: int) -> int:
    """Length of the run of continued page records at `position`, the first of which is one."""
    count = 1
    step = _FIRST_STEP
    while True:
        first = position + count * _PAGE_STRIDE
        wanted = min(step, (len(view) - first - 8) // _PAGE_STRIDE + 1)
        if wanted <= 0:
            return count
        stop = first + (wanted - 1) * _PAGE_STRIDE + 8
        low = view[first + 7 : stop : _PAGE_STRIDE].tobytes()
        high = view[first + 6 : stop : _PAGE_STRIDE].tobytes().translate(_LOW_NIBBLE)
        good = wanted - max(len(low.lstrip(_NEXT_PAGE_BYTE)), len(high.lstrip(b"\0")))
        count += good
        if good < wanted:
            return count
        step *= 8


def _equal_zeros(view: memoryview, position: int) -> int:
    """Length of the run of continued zero records at `position`, the first of which is one."""
    count = 1
    step = _FIRST_STEP
    while True:
        first = position + count * _ZERO_STRIDE
        wanted = min(step, (len(view) - first) // _ZERO_STRIDE)
        if wanted <= 0:
            return count
        stop = first + wanted * _ZERO_STRIDE
        low = view[first + 7 : stop : _ZERO_STRIDE].tobytes()
        high = view[first + 6 : stop : _ZERO_STRIDE].tobytes().translate(_LOW_NIBBLE)
        fill = view[first + 8 : stop : _ZERO_STRIDE].tobytes()
        bad = max(len(low.lstrip(_NEXT_ZERO_BYTE)), len(high.lstrip(b"\0")), len(fill.lstrip(b"\0")))
        count += wanted - bad
        if bad:
            return count
        step *= 8


def _page_record(feed: Feed, ram: Ram, offset: int, word: bytes, flags: int) -> Steps[Event, RamRecords]:
    """The rest of the header of a record that stands for one page; its content is left pending."""
    raw = word
    if not flags & _CONTINUE:
        raw += yield from _block_name(feed, ram)
    elif not ram.current:
        raise FramingError(offset, "the first page record of the stream to name its block", word)
    kind = flags & ~_CONTINUE
    if kind == _PAGE:
        ram.pending = PAGE_SIZE
        return RamRecords(offset, raw, ram.current, normal=1)
    if kind == _ZERO:
        fill = yield from feed.take(1, "a zero page's fill byte")
        if fill != b"\0":
            raise FramingError(feed.offset - 1, "the fill byte 00 of a zero page", fill)
        return RamRecords(offset, raw + fill, ram.current, zero=1)
    if kind == _XBZRLE:
        header = yield from feed.take(3, "an XBZRLE record's header")
        ram.pending = BE16.unpack_from(header, 1)[0]
        if header[0] != 1 or ram.pending > _MAX_XBZRLE:
            raise FramingError(feed.offset - 3, f"XBZRLE encoding 01 and a length up to {_MAX_XBZRLE}", header)
        return RamRecords(offset, raw + header, ram.current, xbzrle=1)
    header = yield from feed.take(4, "a compressed page's length")
    ram.pending = BE32.unpack(header)[0]
    if ram.pending > _MAX_COMPRESSED:
        raise LimitError(feed.offset - 4, f"a compressed page of at most {_MAX_COMPRESSED} bytes", header)
    return RamRecords(offset, raw + header, ram.current, compressed=1)


def _block_name(feed: Feed, ram: Ram) -> Steps[Event, bytes]:
    """A page record's block name, which becomes the current block; returns its bytes with the length byte."""
    offset = feed.offset
    length = yield from feed.take(1, "a RAM block name's length")
    name = yield from feed.take(length[0], "a RAM block's name")
    block = name_at(name, offset + 1, "a RAM block")
    if block not in ram.blocks:
        raise FramingError(offset, "the name of a RAM block of the MEM_SIZE list", name)
    ram.current = block
    return length + name


def _block_list(feed: Feed, ram: Ram, offset: int, word: bytes) -> Steps[Event, RamBlocks]:
    """The MEM_SIZE record: blocks until their lengths sum up to the total (ram.c:3134-3154)."""
    total = remaining = BE64.unpack(word)[0] & ~_FLAG_BITS
    parts = [word]
    while remaining:
        if len(ram.blocks) == _MAX_BLOCKS:
            raise LimitError(feed.offset, f"at most {_MAX_BLOCKS} RAM blocks", "one more")
        at = feed.offset
        name_length = yield from feed.take(1, "a RAM block name's length")
        name = yield from feed.take(name_length[0], "a RAM block's name")
        size = yield from feed.take(8, "a RAM block's length")
        length = BE64.unpack(size)[0]
        block = name_at(name, at + 1, "a RAM block")
        if block in ram.blocks:
            raise FramingError(at, "each RAM block once", name)
        if length > remaining:
            raise FramingError(at, f"a RAM block of at most {remaining:#x} bytes, the rest of the total", size)
        remaining -= length
        parts += [name_length, name, size]
        page_size = gpa = None
        if ram.page_sizes_listed and (yield from _page_size_follows(feed, ram, last=not remaining)):
            raw = yield from feed.take(8, "a RAM block's page size")
            page_size = BE64.unpack(raw)[0]
            parts.append(raw)
        if ram.gpa_listed:
            raw = yield from feed.take(8, "a RAM block's guest physical address")
            gpa = BE64.unpack(raw)[0]
            parts.append(raw)
        ram.blocks[block] = RamBlock(block, length, page_size, gpa)
    return RamBlocks(offset, b"".join(parts), total, tuple(ram.blocks.values()))


def _page_size_follows(feed: Feed, ram: Ram, *, last: bool) -> Steps[Event, bool]:
    """Whether the optional page size stands here.

    The source sends it only for blocks whose pages are larger than its host's, a size the stream
    does not name. But what follows the row without it is known: the next row, which begins with a
    name's length and never with 00, or after the last row a record's word, whose low 12 bits are
    never all clear as those of a page size are.
    """
    skipped = 8 if ram.gpa_listed else 0
    ahead = yield from feed.peek(skipped + 8, "a row of the RAM block list")
    following = ahead[skipped:]
    if last:
        return not BE64.unpack(following)[0] & _FLAG_BITS
    return following[0] == 0
