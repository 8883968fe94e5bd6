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

from qmpfilter.errors import RecordError
from qmpfilter.layout import Field, Layout
from qmpfilter.svm.svm2 import MAJOR, MINOR, L1Visible, Svm2Flags, Svm2State, Validity
from qmpfilter.svm.vmcb import CONTROL_SIZE, PAGE_SIZE, SAVE_OFFSET, SAVE_SIZE

__all__ = ["ANNEX_OFFSET", "MAGIC", "RECORD", "decode", "encode", "strip"]

ANNEX_OFFSET: Final = 0xC80
MAGIC: Final = b"SVM2"
_LENGTH: Final = PAGE_SIZE - ANNEX_OFFSET
_ALL_VALIDITY: Final = int(~Validity(0))
_ALL_FLAGS: Final = int(~Svm2Flags(0))


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
        _row(0xCC0, "cr0", Int64ul, "L1's, as L1 would read it; so the next four"),
        _row(0xCC8, "cr3", Int64ul),
        _row(0xCD0, "cr4", Int64ul),
        _row(0xCD8, "efer", Int64ul),
        _row(0xCE0, "pat", Int64ul),
        _row(0xD00, "vmcb12_save", Bytes(SAVE_SIZE), "save+N at page+d00+N"),
    ],
    size=_LENGTH,
    gaps=True,
)


def encode(state: Svm2State) -> bytes:
    """The page that carries a state: legacy state with the record behind it.

    Between l1_save and the record it is zero, as every kernel writes it.
    """
    base = state.vmcb12_control + state.l1_save
    base += bytes(ANNEX_OFFSET - len(base))
    visible = state.l1_visible
    values = {
        "magic": MAGIC,
        "major": MAJOR,
        "minor": MINOR,
        "length": _LENGTH,
        "flags": int(state.flags),
        "vmcb_pa": state.vmcb_pa,
        "validity": int(state.validity),
        "base_crc": zlib.crc32(base),
        "record_crc": 0,
        "producer": state.producer,
        "producer_version": state.producer_version,
        "cr0": visible.cr0,
        "cr3": visible.cr3,
        "cr4": visible.cr4,
        "efer": visible.efer,
        "pat": visible.pat,
        "vmcb12_save": state.vmcb12_save,
    }
    record = bytearray(RECORD.build(values))
    RECORD.put(record, "record_crc", zlib.crc32(record))
    return base + bytes(record)


def decode(page: bytes, vmcb_pa: int, *, run_pending: bool, gif: bool) -> Svm2State | None:
    """The state that a page carries; None if it has no record and so is plain legacy state.

    :param page: 4096 bytes
    :param vmcb_pa: the header's
    :raises RecordError: there is a record and it is damaged, or does not belong to this page: never to be
        taken for legacy state after all. Its offset is counted from the start of the page.
    """
    record = page[ANNEX_OFFSET:]
    if not record.startswith(MAGIC):
        return None
    zeroed = bytearray(record)
    RECORD.put(zeroed, "record_crc", 0)
    for name, expected in (
        ("major", MAJOR),
        ("length", _LENGTH),
        ("record_crc", zlib.crc32(zeroed)),
        ("base_crc", zlib.crc32(page[:ANNEX_OFFSET])),
        ("vmcb_pa", vmcb_pa),
    ):
        found = RECORD.get(record, name)
        if found != expected:
            at = ANNEX_OFFSET + RECORD.offset(name)
            raise RecordError(at, f"{name} {expected:#x} in the svm2 record", f"{found:#x}")
    if vmcb_pa % PAGE_SIZE:
        at = ANNEX_OFFSET + RECORD.offset("vmcb_pa")
        raise RecordError(at, "the address of a page as vmcb_pa in the svm2 record", f"{vmcb_pa:#x}")
    return Svm2State(
        run_pending=run_pending,
        gif=gif,
        vmcb_pa=vmcb_pa,
        l1_visible=L1Visible(*(RECORD.get(record, name) for name in ("cr0", "cr3", "cr4", "efer", "pat"))),
        l1_save=page[SAVE_OFFSET : SAVE_OFFSET + SAVE_SIZE],
        vmcb12_control=page[:CONTROL_SIZE],
        vmcb12_save=record[RECORD.span("vmcb12_save")],
        # Bits that a later minor may have given a meaning are dropped.
        validity=Validity(RECORD.get(record, "validity") & _ALL_VALIDITY),
        flags=Svm2Flags(RECORD.get(record, "flags") & _ALL_FLAGS),
        producer=RECORD.get(record, "producer"),
        producer_version=RECORD.get(record, "producer_version"),
    )


def strip(page: bytes) -> bytes:
    """The legacy page without its record, as a kernel gives it."""
    return page[:ANNEX_OFFSET] + bytes(_LENGTH)
