# SPDX-License-Identifier: GPL-2.0-or-later
"""What a connection from the source is, told from its first bytes.

Source: QEMU 10.2.2 migration/migration.c:1021-1052, where a destination tells its connections apart in the
same way.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import time
from typing import Final

from qmpfilter.errors import DeadlineError, UnsupportedError
from qmpfilter.relay.deadline import Deadline
from qmpfilter.wire.framing import CPR_MAGIC, MAGIC, MULTIFD_MAGIC, TLS_HANDSHAKE, SectionType

__all__ = ["FIRST_BYTES", "Channel", "channel_of", "channel_of_any", "first_bytes"]

FIRST_BYTES: Final = 4
"""So many bytes tell what a channel is."""

_PEEK_AGAIN: Final = 0.01


class Channel(enum.Enum):
    """Kinds of channels. All but the main one are pumped without being looked into."""

    MAIN = "main"
    MULTIFD = "multifd"
    STORAGE = "storage"
    """That of a disk, NBD: by where it came, or by saying nothing before the main channel is there."""
    OTHER = "other"
    """One that begins in no known way, or with nothing: postcopy-preempt, or a stranger's."""


def channel_of(first: bytes) -> Channel:
    """The kind of a channel.

    :param first: its first :data:`FIRST_BYTES` bytes; fewer when it brought no more
    :raises UnsupportedError: a channel that cannot be relayed
    """
    if first == MAGIC:
        return Channel.MAIN
    if first == MULTIFD_MAGIC:
        return Channel.MULTIFD
    if first == CPR_MAGIC:
        raise UnsupportedError(0, "a migration stream; CPR passes file descriptors, which no relay can", first)
    if first[:1] == bytes([TLS_HANDSHAKE]):
        raise UnsupportedError(
            0,
            "a plain migration stream; this is TLS: leave tls-creds away and protect the way between the hosts",
            first,
        )
    if first[:1] == bytes([SectionType.COMMAND]):
        raise UnsupportedError(0, "a migration from its start; this is a postcopy migration that is resumed", first)
    return Channel.OTHER


def channel_of_any(first: bytes) -> Channel:
    """The kind of a channel where everything passes, TLS and what else cannot be read as well.

    :param first: as above; a source speaks first on its main channel, so who says nothing is not taken for it
    """
    if not first:
        return Channel.OTHER
    return Channel.MULTIFD if first == MULTIFD_MAGIC else Channel.MAIN


def first_bytes(connection: socket.socket, seconds: float) -> bytes | None:
    """What a connection begins with, without taking it: less if no more came in time, None if it ended at once."""
    deadline = Deadline(seconds, "the first bytes of a connection")
    first = b""
    with contextlib.suppress(TimeoutError, DeadlineError):
        while len(first) < FIRST_BYTES:
            connection.settimeout(deadline.remaining())
            try:
                seen = connection.recv(FIRST_BYTES, socket.MSG_PEEK)
            except ConnectionError:
                return None
            if len(seen) == len(first):
                if not seen:
                    return None
                # The same bytes again: the kernel does not wait for more while there are some to be peeked at.
                time.sleep(_PEEK_AGAIN)
            first = seen
    connection.settimeout(None)
    return first
