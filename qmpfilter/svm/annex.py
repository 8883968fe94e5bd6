# SPDX-License-Identifier: GPL-2.0-or-later
"""The annex: svm2 in the last 0x380 bytes of the legacy page, which every kernel accepts.

The legacy page stays byte for byte what it was in [000,c80). Every kernel from 5.8 to 7.3 ignores the rest
when nested state is set and clears it when it is read, and stock QEMU copies the page verbatim; so a
destination that does not know svm2 sees legacy state, and one that does finds all of it.

The record is little-endian. vmcb12_control (page+000) and l1_save (page+400) are not repeated in it.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

from construct import Bytes, Construct, Int16ul, Int32ul, Int64ul

from qmpfilter.errors import BugError, RecordError
from qmpfilter.layout import Codec, Field, Fields, Layout
from qmpfilter.svm.svm2 import FLAG_BITS, MAJOR, MINOR, VALIDITY_BITS, L1Visible, Svm2Flags, Svm2State, Validity
from qmpfilter.svm.vmcb import CONTROL_SIZE, PAGE_SIZE, SAVE_OFFSET, SAVE_SIZE

__all__ = ["ANNEX_OFFSET", "MAGIC", "RECORD", "decode", "encode", "strip"]

ANNEX_OFFSET: Final = 0xC80
MAGIC: Final = b"SVM2"
_LENGTH: Final = PAGE_SIZE - ANNEX_OFFSET


def _row(page_offset: int, name: str, type_: Construct[Any, Any], doc: str = "") -> Field:
    return Field(page_offset - ANNEX_OFFSET, name, type_, doc)


RECORD: Final = Layout(
    "svm2 annex",
    "page+c80 to page+1000; offsets below are those of the page",
    [
        _row(0xC80, "magic", Bytes(4), "S V M 2"),
        _row(0xC84, "major", Int16ul, "2"),
        _row(0xC86, "minor", Int16ul, "0; a greater one is accepted"),
        _row(0xC88, "length", Int32ul, "0x380"),
        _row(0xC8C, "flags", Int32ul, "Svm2Flags"),
        _row(0xC90, "vmcb_pa", Int64ul, "equals the header's"),
        _row(0xC98, "validity", Int64ul, "Validity"),
        _row(0xCA0, "base_crc", Int32ul, "CRC-32 (IEEE) of page[000,c80): binds the record to what it describes"),
        _row(0xCA4, "record_crc", Int32ul, "CRC-32 of page[c80,1000) with these 4 bytes zero"),
        _row(0xCA8, "producer", Int16ul, "1 qmpfilter, 2 Linux kvm_amd"),
        _row(0xCAA, "producer_version", Int16ul),
        _row(0xCAC, "reserved_cac", Bytes(0x14), "zero in minor 0"),
        _row(0xCC0, "cr0", Int64ul, "L1's, as L1 would read it; so the next four"),
        _row(0xCC8, "cr3", Int64ul),
        _row(0xCD0, "cr4", Int64ul),
        _row(0xCD8, "efer", Int64ul),
        _row(0xCE0, "pat", Int64ul),
        _row(0xCE8, "reserved_ce8", Bytes(0x18), "zero in minor 0"),
        _row(0xD00, "vmcb12_save", Bytes(SAVE_SIZE), "save+N at page+d00+N"),
    ],
    size=_LENGTH,
)

_CODEC: Final = Codec(RECORD, RECORD.fields)
_INTEGERS: Final = Codec(RECORD)
_RECORD_CRC: Final = RECORD.span("record_crc")


def encode(state: Svm2State) -> bytes:
    """The page that carries a state: legacy state with the record behind it.

    Between l1_save and the record it is zero, as every kernel writes it.
    """
    base = state.vmcb12_control + state.l1_save
    base += bytes(ANNEX_OFFSET - len(base))
    visible = state.l1_visible
    record = bytearray(
        _CODEC.pack(
            MAGIC,
            MAJOR,
            MINOR,
            _LENGTH,
            state.flags,
            state.vmcb_pa,
            state.validity,
            zlib.crc32(base),
            0,
            state.producer,
            state.producer_version,
            b"",
            visible.cr0,
            visible.cr3,
            visible.cr4,
            visible.efer,
            visible.pat,
            b"",
            state.vmcb12_save,
        )
    )
    RECORD.put(record, "record_crc", zlib.crc32(record))
    return base + record


def decode(page: bytes, vmcb_pa: int, *, run_pending: bool, gif: bool) -> Svm2State | None:
    """The state that a page carries; None if it has no record and so is plain legacy state.

    :param page: 4096 bytes
    :param vmcb_pa: the header's
    :raises RecordError: there is a record and it is damaged, or does not belong to this page: never to be
        taken for legacy state after all. Its offset is counted from the start of the page.
    :raises BugError: `page` has another size
    """
    if len(page) != PAGE_SIZE:
        raise BugError(f"svm2 annex: a page of {PAGE_SIZE} bytes expected, {len(page)} given")
    if not page.startswith(MAGIC, ANNEX_OFFSET):
        return None
    record = page[ANNEX_OFFSET:]
    told = _INTEGERS.read(record)
    _check(page, record, told, vmcb_pa)
    return Svm2State(
        run_pending=run_pending,
        gif=gif,
        vmcb_pa=vmcb_pa,
        l1_visible=L1Visible(told.cr0, told.cr3, told.cr4, told.efer, told.pat),
        l1_save=page[SAVE_OFFSET : SAVE_OFFSET + SAVE_SIZE],
        vmcb12_control=page[:CONTROL_SIZE],
        vmcb12_save=record[RECORD.span("vmcb12_save")],
        # Bits that a later minor gave a meaning are dropped.
        validity=Validity(told.validity & VALIDITY_BITS),
        flags=Svm2Flags(told.flags & FLAG_BITS),
        producer=told.producer,
        producer_version=told.producer_version,
    )


def strip(page: bytes) -> bytes:
    """The legacy page without its record, as a kernel gives it."""
    return page[:ANNEX_OFFSET] + bytes(_LENGTH)


def _check(page: bytes, record: bytes, told: Fields, vmcb_pa: int) -> None:
    """:raises RecordError: damage, another page's record, or in minor 0 something that it does not define."""
    without_crc = record[: _RECORD_CRC.start] + bytes(4) + record[_RECORD_CRC.stop :]
    for name, expected, found in (
        ("major", MAJOR, told.major),
        ("length", _LENGTH, told.length),
        ("record_crc", zlib.crc32(without_crc), told.record_crc),
        ("base_crc", zlib.crc32(page[:ANNEX_OFFSET]), told.base_crc),
        ("vmcb_pa", vmcb_pa, told.vmcb_pa),
    ):
        if found != expected:
            raise _error(name, f"{name} {expected:#x}", f"{found:#x}")
    if vmcb_pa % PAGE_SIZE:
        raise _error("vmcb_pa", "the address of a page as vmcb_pa", f"{vmcb_pa:#x}")
    if told.minor == MINOR:
        for name, known, found in (("flags", FLAG_BITS, told.flags), ("validity", VALIDITY_BITS, told.validity)):
            if found & ~known:
                raise _error(name, f"{name} within {known:#x}, all that minor {MINOR} defines,", f"{found:#x}")
        for name in ("reserved_cac", "reserved_ce8"):
            if any(record[RECORD.span(name)]):
                raise _error(name, f"zeros in {name}", record[RECORD.span(name)])


def _error(name: str, expected: str, found: str | bytes) -> RecordError:
    return RecordError(ANNEX_OFFSET + RECORD.offset(name), f"{expected} in the svm2 record", found)
