# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers of the stream's outer framing. All integers on the wire are big-endian.

Source: QEMU 10.2.2 migration/savevm.h, migration/savevm.c, include/migration/qemu-file-types.h.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from typing import Final

__all__ = [
    "BE16",
    "BE32",
    "BE64",
    "COMMAND_HEADER",
    "COMMAND_LENGTHS",
    "CPR_MAGIC",
    "FOOTER_SIZE",
    "MAGIC",
    "MULTIFD_MAGIC",
    "STREAM_VERSION",
    "TLS_HANDSHAKE",
    "Command",
    "Configuration",
    "SectionType",
    "command_name",
    "subsection_header",
]

BE16: Final = struct.Struct(">H")
BE32: Final = struct.Struct(">I")
BE64: Final = struct.Struct(">Q")

MAGIC: Final = b"QEVM"  # savevm.h:17, QEMU_VM_FILE_MAGIC
STREAM_VERSION: Final = 3  # savevm.h:19
FOOTER_SIZE: Final = 5  # savevm.c:1026-1032: type byte, be32 section_id
COMMAND_HEADER: Final = struct.Struct(">HH")  # after the type byte: be16 command, be16 length

# First bytes of channels that are no main channel.
MULTIFD_MAGIC: Final = b"\x11\x22\x33\x44"  # migration/multifd.h:46
CPR_MAGIC: Final = b"\x51\x43\x50\x52"  # include/migration/cpr.h:16
TLS_HANDSHAKE: Final = 0x16  # TLS record type of a client hello, RFC 8446 section 5.1


class SectionType(enum.IntEnum):
    """The byte that begins every part of the stream (savevm.h:21-30)."""

    EOF = 0x00
    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04
    SUBSECTION = 0x05
    VMDESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    FOOTER = 0x7E


class Command(enum.IntEnum):
    """Commands from the source to the destination (savevm.c:78-118)."""

    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11


# The lengths each command may have; None: not fixed (savevm.c:2399-2475).
COMMAND_LENGTHS: Final[Mapping[Command, tuple[int, ...] | None]] = {
    Command.OPEN_RETURN_PATH: (0,),
    Command.PING: (4,),
    Command.POSTCOPY_ADVISE: (0, 16),
    Command.POSTCOPY_LISTEN: (0,),
    Command.POSTCOPY_RUN: (0,),
    Command.POSTCOPY_RAM_DISCARD: None,
    Command.PACKAGED: (4,),
    Command.ENABLE_COLO: (0,),
    Command.POSTCOPY_RESUME: (0,),
    Command.RECV_BITMAP: None,
    Command.SWITCHOVER_START: (0,),
}


class Configuration(enum.StrEnum):
    """Subsections of CONFIGURATION (savevm.c:541-559)."""

    PAGE_BITS = "configuration/target-page-bits"
    CAPABILITIES = "configuration/capabilities"
    UUID = "configuration/uuid"


def command_name(code: int) -> str:
    """The command's name as QEMU's source has it, or its number."""
    try:
        return Command(code).name
    except ValueError:
        return f"command {code}"


def subsection_header(name: str, version: int) -> bytes:
    """What stands before a subsection's fields: type byte, u8 length and name, be32 version
    (vmstate.c, vmstate_subsection_save)."""
    return bytes([SectionType.SUBSECTION, len(name)]) + name.encode() + BE32.pack(version)
