# SPDX-License-Identifier: GPL-2.0-or-later
"""The contents of a PACKAGED command: the device sections of a postcopy migration.

Source: QEMU 10.2.2 migration/migration.c:2818-2858: COMMAND LISTEN, FULL sections as in a precopy
tail, COMMAND PING(3), since 10.2 PING(0x42), COMMAND RUN. There is no EOF and no vmdesc, so sections
of unknown layout end with the first footer that something can follow.
"""

from __future__ import annotations

from collections.abc import Iterator

from qmpfilter.errors import FramingError, LayoutError
from qmpfilter.wire.events import CommandReceived, DeviceSection
from qmpfilter.wire.footers import SectionHeader, next_part
from qmpfilter.wire.framing import COMMAND_HEADER, Command
from qmpfilter.wire.sections import SeenSections, by_footers

__all__ = ["package_events"]


def package_events(
    contents: bytes, offset: int, seen: SeenSections | None = None
) -> Iterator[CommandReceived | DeviceSection]:
    """Divide a package.

    :param offset: stream offset of its first byte
    :param seen: the device sections before it, to which its own are added
    :raises FramingError: something else than commands and device sections, or a section twice
    :raises LayoutError: a section without an end, or one that departs from its known layout
    """
    seen = SeenSections() if seen is None else seen
    at = 0
    while at < len(contents):
        part = next_part(contents, at)
        event: CommandReceived | DeviceSection | None
        if isinstance(part, Command):
            event = _command(contents, at, part, offset)
        elif isinstance(part, SectionHeader):
            event = by_footers(contents, at, part, offset)
            if event is None:
                raise LayoutError(
                    offset + at,
                    f"an end of section {part.idstr!r} {part.instance_id}",
                    contents[at : at + 24],
                )
            seen.add(event)
        else:
            raise FramingError(offset + at, "a command or a device section of a package", contents[at : at + 24])
        yield event
        at += len(event.raw)


def _command(contents: bytes, at: int, command: Command, offset: int) -> CommandReceived:
    end = at + 5 + COMMAND_HEADER.unpack_from(contents, at + 1)[1]
    if end > len(contents) or command is Command.PACKAGED:
        raise FramingError(offset + at, "a whole command of a package", contents[at : at + 24])
    return CommandReceived(offset + at, contents[at:end], command, contents[at + 5 : end])
