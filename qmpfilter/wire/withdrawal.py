# SPDX-License-Identifier: GPL-2.0-or-later
"""How a stream is withdrawn in words: a section that no QEMU knows, named by the reason.

A destination that meets it fails, and says the section's name: the only text of ours that reaches a person who knows
nothing of a filter. QEMU 7.2 says it on its stderr and ends, so that libvirt 9.0 passes it on to whoever asked for
the migration; 10.0 says it there and stays, and libvirt 11.3 passes on an error without the name; 11.1 has it in its
error.

Source: QEMU 10.2.2 migration/savevm.c:2559-2606 (qemu_loadvm_section_start_full: the name is looked up before
instance and version mean anything), 1004-1024 (the header); the same in 7.2 and 11.1.
"""

from __future__ import annotations

from typing import Final

from qmpfilter.errors import WithdrawnError
from qmpfilter.wire.framing import BE32, SectionType
from qmpfilter.wire.names import is_name

__all__ = ["check_withdrawn", "check_withdrawn_at_end", "withdrawal"]

_PREFIX: Final = "qmpfilter: "
_LONGEST: Final = 255
_CUT: Final = " ... "
# Section, instance and version: whoever should take these bytes for something else finds no EOF in them.
_NO_EOF: Final = BE32.pack(0x01010101)
_HEAD: Final = bytes([SectionType.FULL]) + _NO_EOF


def withdrawal(reason: str) -> bytes:
    """The section for a reason: of one that is too long, the beginning and the end, where the code stands.

    Without a zero byte, so that no destination can find the end of the sections in it.
    """
    name = f"{_PREFIX}{''.join(one if one.isascii() and one.isprintable() else '?' for one in reason)}"
    if len(name) > _LONGEST:
        last = name[-(_LONGEST // 4) :]
        name = f"{name[: _LONGEST - len(_CUT) - len(last)].rstrip()}{_CUT}{last.lstrip()}"
    return _HEAD + bytes([len(name)]) + name.encode() + _NO_EOF + _NO_EOF


def check_withdrawn(data: bytes | bytearray, offset: int) -> None:
    """Check what stands where a section was expected and is none.

    :param offset: of its first byte in the stream
    :raises WithdrawnError: another filter has withdrawn the stream
    """
    reason = _reason(data)
    if reason is not None:
        raise WithdrawnError(offset, "a device section", reason)


def check_withdrawn_at_end(data: bytes | bytearray, offset: int) -> None:
    """The same for sections that could not be divided before the input ended.

    :param offset: of the first of them in the stream
    """
    at = data.rfind(_HEAD)
    reason = _reason(data[at:]) if at >= 0 else None
    if reason is not None and len(data) == at + len(withdrawal(reason)):
        raise WithdrawnError(offset + at, "vmdesc after the device sections", reason)


def _reason(data: bytes | bytearray) -> str | None:
    """That of a withdrawal at the beginning of the data."""
    if len(data) <= len(_HEAD) or not data.startswith(_HEAD):
        return None
    name = bytes(data[6 : 6 + data[5]])
    if is_name(name) and name.startswith(_PREFIX.encode()):
        return name.decode().removeprefix(_PREFIX)
    return None
