# SPDX-License-Identifier: GPL-2.0-or-later
"""Names in the stream: of machines, sections, RAM blocks, subsections.

QEMU's own are printable ASCII. Anything else is refused at once, so that no name can carry control
sequences to a terminal or a log.
"""

from __future__ import annotations

from qmpfilter.errors import FramingError

__all__ = ["is_name", "name_at"]


def is_name(raw: bytes) -> bool:
    """True for at least one byte, all of them printable ASCII."""
    return bool(raw) and raw.isascii() and raw.decode("ascii").isprintable()


def name_at(raw: bytes, offset: int, what: str) -> str:
    """Decode a name.

    :param offset: where it stands in the stream; `what` it names; both for the error
    :raises FramingError: it is empty or not printable
    """
    if not is_name(raw):
        raise FramingError(offset, f"a printable name of {what}", raw)
    return raw.decode("ascii")
