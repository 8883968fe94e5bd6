# SPDX-License-Identifier: GPL-2.0-or-later
"""Native svm2: a nested state format of its own, for endpoints that announced it.

As struct kvm_nested_state (little-endian) it is what a kernel would give and take; as a QEMU subsection
(big-endian) it takes the place of ``cpu/kvm_nested_state/svm``. A stock QEMU dies on either. Two pages
follow the header's fields: L1's save area at the start of the first, VMCB12 (control area at 000, L2's save
area at 400) in the second, all else zero.

Neither form has a checksum: between kernel and QEMU none is needed, and between filters the stream's own
framing holds. What is checked is what both sides must agree on.

Source: this project's format, section 4; Linux 7.3 arch/x86/include/uapi/asm/kvm.h for the first 0x18 bytes
of the struct, whose ``gpat`` stays where Linux 7.2 put it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from construct import Bytes, Construct, Int16ub, Int16ul, Int32ub, Int32ul, Int64ub, Int64ul

from qmpfilter.errors import BugError, RecordError
from qmpfilter.layout import Codec, Field, Layout
from qmpfilter.svm.legacy import SIZE_L1, StateFlags
from qmpfilter.svm.svm2 import FLAG_BITS, VALIDITY_BITS, L1Visible, Svm2Flags, Svm2State, Validity
from qmpfilter.svm.vmcb import PAGE_SIZE, SAVE
from qmpfilter.wire import cpu

__all__ = [
    "BLOB",
    "FORMAT",
    "SIZE",
    "SUBSECTION",
    "Subsections",
    "decode_blob",
    "decode_subsections",
    "encode_blob",
    "encode_subsections",
]

FORMAT: Final = 0x8002
"""kvm_nested_state.format; private until upstream assigns one. KVM and QEMU refuse what they do not know."""

SIZE: Final = SIZE_L1 + 2 * PAGE_SIZE
"""kvm_nested_state.size: the 128-byte header and both pages."""

SUBSECTION: Final = cpu.NESTED_STATE_SVM2.layout
"""The fields of ``cpu/kvm_nested_state/svm2``; its parent is ``cpu/nested_state``."""

_LITTLE: Final[dict[Any, Construct[Any, Any]]] = {Int16ub: Int16ul, Int32ub: Int32ul, Int64ub: Int64ul}
_PAGES: Final = SUBSECTION.offset("l1_save")


def _in_blob(field: Field) -> Field:
    """A row of the subsection as the struct has it: little-endian, the pages after the whole 128-byte header."""
    shift = SIZE_L1 - _PAGES if field.offset >= _PAGES else _HEADER_START
    return Field(field.offset + shift, field.name, _LITTLE.get(field.type, field.type), field.doc)


_HEADER_START: Final = 0x08
_ROWS: Final = tuple(_in_blob(field) for field in SUBSECTION.fields.values())
_HEADER_END: Final = _HEADER_START + _PAGES

BLOB: Final = Layout(
    "kvm_nested_state, format 0x8002",
    "section 4 of the format; flags to gpat: Linux 7.3 arch/x86/include/uapi/asm/kvm.h",
    [
        Field(0x00, "flags", Int16ul, "KVM_STATE_NESTED_*"),
        Field(0x02, "format", Int16ul, "0x8002"),
        Field(0x04, "size", Int32ul, "0x2080"),
        *(row for row in _ROWS if row.offset < _HEADER_END),
        Field(_HEADER_END, "reserved_header", Bytes(SIZE_L1 - _HEADER_END), "zero"),
        *(row for row in _ROWS if row.offset >= SIZE_L1),
    ],
)

_PARENT: Final = cpu.NESTED_STATE.layout
_BLOB_CODEC: Final = Codec(BLOB, BLOB.fields)
_PARENT_CODEC: Final = Codec(_PARENT)
_SUBSECTION_CODEC: Final = Codec(SUBSECTION, SUBSECTION.fields)

# Flags that a state in guest mode may have besides GUEST_MODE, which it must have.
_OPTIONAL_FLAGS: Final = int(StateFlags.RUN_PENDING | StateFlags.GIF_SET)
_GUEST_MODE: Final = int(StateFlags.GUEST_MODE)


class Subsections(NamedTuple):
    """Payloads of the two subsections: fields of ``cpu/nested_state``, fields of its child."""

    header: bytes
    child: bytes


def encode_blob(state: Svm2State) -> bytes:
    """The struct kvm_nested_state that carries a state, :data:`SIZE` bytes."""
    return _BLOB_CODEC.pack(*_envelope(state), *_header(state), b"", *_pages(state))


def encode_subsections(state: Svm2State) -> Subsections:
    """The payloads of ``cpu/nested_state`` and ``cpu/kvm_nested_state/svm2`` that carry a state."""
    return Subsections(_PARENT_CODEC.pack(*_envelope(state)), _SUBSECTION_CODEC.pack(*_header(state), *_pages(state)))


def decode_blob(blob: bytes) -> Svm2State:
    """The state that a struct kvm_nested_state carries.

    :raises RecordError: it is damaged, or of another format; the offset is counted from its start
    """
    if len(blob) != BLOB.size:
        raise RecordError(
            min(len(blob), BLOB.size), f"{BLOB.size:#x} bytes of native nested state", f"{len(blob):#x} bytes"
        )
    return _decode(dict(zip(_BLOB_CODEC.names, _BLOB_CODEC.unpack(blob), strict=True)), BLOB, BLOB)


def decode_subsections(header: bytes, child: bytes) -> Svm2State:
    """The state that two subsections carry.

    :raises RecordError: it is damaged, or of another format; the offset is counted from the start of the
        payload that is at fault
    :raises BugError: a payload has another size than its layout
    """
    for payload, layout in ((header, _PARENT), (child, SUBSECTION)):
        if len(payload) != layout.size:
            raise BugError(f"{layout.name}: {layout.size} bytes expected, {len(payload)} given")
    values = dict(zip(_PARENT_CODEC.names, _PARENT_CODEC.unpack(header), strict=True))
    values.update(zip(_SUBSECTION_CODEC.names, _SUBSECTION_CODEC.unpack(child), strict=True))
    return _decode(values, _PARENT, SUBSECTION)


def _envelope(state: Svm2State) -> tuple[int, int, int]:
    return state.state_flags, FORMAT, SIZE


def _header(state: Svm2State) -> tuple[int, ...]:
    visible = state.l1_visible
    return (
        state.vmcb_pa, _gpat(state.vmcb12_save, state.validity), state.validity, state.flags, state.producer,
        state.producer_version, visible.cr0, visible.cr3, visible.cr4, visible.efer, visible.pat,
    )  # fmt: skip


def _pages(state: Svm2State) -> tuple[bytes, ...]:
    return state.l1_save, b"", state.vmcb12_control, state.vmcb12_save, b""


def _gpat(vmcb12_save: bytes, validity: int) -> int:
    return SAVE.get(vmcb12_save, "g_pat") if validity & Validity.G_PAT else 0


def _decode(values: dict[str, Any], envelope: Layout, layout: Layout) -> Svm2State:
    """:param values: all fields of both layouts, which may be one"""

    def demand(holds: bool, where: Layout, name: str, expected: str) -> None:
        if not holds:
            found = values[name]
            shown = found if isinstance(found, bytes) else f"{found:#x}"
            raise RecordError(where.offset(name), f"{expected} in {where.name}", shown)

    flags = values["flags"]
    demand(values["format"] == FORMAT, envelope, "format", f"format {FORMAT:#x}")
    demand(values["size"] == SIZE, envelope, "size", f"size {SIZE:#x}")
    demand(
        flags & ~_OPTIONAL_FLAGS == _GUEST_MODE,
        envelope,
        "flags",
        "GUEST_MODE (0x1) and at most RUN_PENDING (0x2) and GIF_SET (0x100)",
    )
    pa = values["vmcb_pa"]
    demand(pa % PAGE_SIZE == 0, layout, "vmcb_pa", "the address of a page as vmcb_pa")
    gpat = _gpat(values["vmcb12_save"], values["validity"])
    demand(values["gpat"] == gpat, layout, "gpat", f"gpat {gpat:#x}, as validity and VMCB12's g_pat say,")
    demand(values["validity"] & ~VALIDITY_BITS == 0, layout, "validity", f"validity within {VALIDITY_BITS:#x}")
    demand(values["svm2_flags"] & ~FLAG_BITS == 0, layout, "svm2_flags", f"flags within {FLAG_BITS:#x}")
    for name in layout.fields:
        if name.startswith("reserved_"):
            demand(values[name] == bytes(len(values[name])), layout, name, f"zeros in {name}")
    return Svm2State(
        run_pending=bool(flags & StateFlags.RUN_PENDING),
        gif=bool(flags & StateFlags.GIF_SET),
        vmcb_pa=pa,
        l1_visible=L1Visible(*(values[name] for name in ("cr0", "cr3", "cr4", "efer", "pat"))),
        l1_save=values["l1_save"],
        vmcb12_control=values["vmcb12_control"],
        vmcb12_save=values["vmcb12_save"],
        validity=Validity(values["validity"]),
        flags=Svm2Flags(values["svm2_flags"]),
        producer=values["producer"],
        producer_version=values["producer_version"],
    )
