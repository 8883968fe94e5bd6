# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error of qmpfilter, in one tree, split by who is to blame.

::

    QmpfilterError
    ├── StreamError           the bytes: offset, expected, found
    │   ├── FramingError      not what the stream format allows at this place
    │   ├── TruncatedError    the input ended inside something
    │   ├── LimitError        a length or a count beyond what the parser will hold
    │   ├── LayoutError       a section disagrees with its known layout or with vmdesc
    │   ├── RecordError       an svm2 record is damaged or stands in the wrong page
    │   ├── RefusedError      nested state that is contradictory, or that no kernel loads as it is
    │   ├── UnsupportedError  legal, but nothing that can be read here (TLS, COLO, RDMA ...)
    │   ├── WithdrawnError    a filter before this one stopped the migration, and says why
    │   └── ImageError        the libvirt save image around the stream
    ├── PolicyError           what the operator asked for forbids it
    ├── HostError             this machine, its tools, or how the command was called
    │   ├── DeadlineError     something did not happen in time
    │   ├── DaemonAwayError   no daemon answers
    │   ├── StoreAwayError    the cluster's store cannot be reached
    │   └── ChangedError      somebody else changed it first
    └── BugError              qmpfilter itself

Any other exception that leaves the package is a bug too.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BugError",
    "ChangedError",
    "DaemonAwayError",
    "DeadlineError",
    "FramingError",
    "HostError",
    "ImageError",
    "LayoutError",
    "LimitError",
    "PolicyError",
    "QmpfilterError",
    "RecordError",
    "RefusedError",
    "StoreAwayError",
    "StreamError",
    "TruncatedError",
    "UnsupportedError",
    "WithdrawnError",
]

_SHOWN_BYTES = 24


class QmpfilterError(Exception):
    """Root of the tree; never raised itself."""


class StreamError(QmpfilterError):
    """The bytes of a migration stream are at fault.

    :param offset: position of the first offending byte, counted from the start of the stream
    :param expected: what the format demands there, in words
    :param found: what stands there: raw bytes are shown in hexadecimal, text as it is
    """

    def __init__(self, offset: int, expected: str, found: bytes | str) -> None:
        self.offset = offset
        self.expected = expected
        self.found = found if isinstance(found, str) else _hexadecimal(found)
        super().__init__(f"offset {offset:#x}: expected {expected}, found {self.found}")


class FramingError(StreamError):
    """A byte or a field that the stream format does not allow at this place."""


class TruncatedError(StreamError):
    """The input ended inside a header, a record or a section."""


class LimitError(StreamError):
    """A length or a count exceeds what the parser is allowed to hold."""


class LayoutError(StreamError):
    """A section disagrees with its known layout, with its footer, or with vmdesc."""


class RecordError(StreamError):
    """An svm2 record is damaged, or describes another page than the one it stands in; the offset is counted
    from the start of what carries it: the VMCB page, the struct, or the subsection's fields."""


class RefusedError(StreamError):
    """Nested state that no conversion touches: damaged, contradictory, or of a kind that kernels reject.

    :param offset: of the first reason's field in what holds it: the VMCB page, L2's save area, the section's
        field block, or ``cpu/nested_state``
    :param expected: what stands there in state that can be converted
    :param reasons: stable code and sentence of each, one at least
    """

    def __init__(self, offset: int, expected: str, reasons: Sequence[tuple[str, str]]) -> None:
        self.reasons = tuple(reasons)
        super().__init__(offset, expected, " ".join(f"{text} [{code}]" for code, text in reasons))


class UnsupportedError(StreamError):
    """Legal bytes of a kind that cannot be filtered; the message says what to do instead."""


class WithdrawnError(StreamError):
    """A filter before this one has stopped the migration; `found` is its reason."""

    def __str__(self) -> str:
        return self.found


class ImageError(StreamError):
    """The libvirt save image that holds a stream is damaged or incomplete."""


class PolicyError(QmpfilterError):
    """What the operator asked for forbids going on."""


class HostError(QmpfilterError):
    """This machine, its files or tools, or the way the command was called."""


class DeadlineError(HostError):
    """Something did not happen in time: a peer, the network, or a tool that was waited for."""


class DaemonAwayError(HostError):
    """No daemon answers: none listens, it does not let this user in, or it says nothing in time."""


class StoreAwayError(HostError):
    """The cluster's store cannot be reached, does not answer in time, or does not let this host in."""


class ChangedError(HostError):
    """What was to be written in the cluster's store was changed by somebody else in the meantime."""


class BugError(QmpfilterError):
    """qmpfilter broke one of its own rules."""


def _hexadecimal(data: bytes) -> str:
    if not data:
        return "nothing"
    tail = " ..." if len(data) > _SHOWN_BYTES else ""
    return data[:_SHOWN_BYTES].hex(" ") + tail
