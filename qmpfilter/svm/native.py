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

from typing import Any, Final, NamedTuple, TypeAlias

from construct import Bytes, Construct, Int16ub, Int16ul, Int32ub, Int32ul, Int64ub, Int64ul

from qmpfilter.errors import BugError, RecordError
from qmpfilter.layout import Codec, Field, Layout
from qmpfilter.svm.legacy import SIZE_L1, StateFlags
from qmpfilter.svm.svm2 import FLAG_BITS, VALIDITY_BITS, L1Visible, Svm2Flags, Svm2State, Validity
from qmpfilter.svm.vmcb import CONTROL_SIZE, PAGE_SIZE, SAVE, SAVE_OFFSET, SAVE_SIZE
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

_Type: TypeAlias = "Construct[Any, Any]"


def _header_rows(start: int, u16: _Type, u32: _Type, u64: _Type) -> list[Field]:
    return [
        Field(start, "vmcb_pa", u64, "L1 GPA of VMCB12"),
        Field(start + 0x08, "gpat", u64, "L2's PAT where it has its own (Validity.G_PAT), else 0"),
        Field(start + 0x10, "validity", u64, "Validity"),
        Field(start + 0x18, "svm2_flags", u32, "Svm2Flags"),
        Field(start + 0x1C, "producer", u16, "1 qmpfilter, 2 Linux kvm_amd"),
        Field(start + 0x1E, "producer_version", u16),
        Field(start + 0x20, "cr0", u64, "L1's, as L1 would read it; so the next four"),
        Field(start + 0x28, "cr3", u64),
        Field(start + 0x30, "cr4", u64),
        Field(start + 0x38, "efer", u64),
        Field(start + 0x40, "pat", u64),
    ]


def _page_rows(start: int) -> list[Field]:
    vmcb12 = start + PAGE_SIZE
    end = SAVE_OFFSET + SAVE_SIZE
    return [
        Field(start, "l1_save", Bytes(SAVE_SIZE)),
        Field(start + SAVE_SIZE, "reserved_l1", Bytes(PAGE_SIZE - SAVE_SIZE), "zero"),
        Field(vmcb12, "vmcb12_control", Bytes(CONTROL_SIZE)),
        Field(vmcb12 + SAVE_OFFSET, "vmcb12_save", Bytes(SAVE_SIZE), "L2's registers"),
        Field(vmcb12 + end, "reserved_vmcb12", Bytes(PAGE_SIZE - end), "zero"),
    ]


BLOB: Final = Layout(
    "kvm_nested_state, format 0x8002",
    "section 4 of the format; flags to gpat: Linux 7.3 arch/x86/include/uapi/asm/kvm.h",
    [
        Field(0x00, "flags", Int16ul, "KVM_STATE_NESTED_*"),
        Field(0x02, "format", Int16ul, "0x8002"),
        Field(0x04, "size", Int32ul, "0x2080"),
        *_header_rows(0x08, Int16ul, Int32ul, Int64ul),
        Field(0x50, "reserved_header", Bytes(SIZE_L1 - 0x50), "zero"),
        *_page_rows(SIZE_L1),
    ],
)

SUBSECTION: Final = Layout(
    "cpu/kvm_nested_state/svm2",
    "section 4 of the format; version 1; its parent is cpu/nested_state",
    [*_header_rows(0x00, Int16ub, Int32ub, Int64ub), *_page_rows(0x48)],
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
