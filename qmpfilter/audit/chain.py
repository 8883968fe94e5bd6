# SPDX-License-Identifier: GPL-2.0-or-later
"""Records that vouch for one another: each has the digest of the one before.

A record is a line: a JSON object in UTF-8 with sorted keys and without spaces. ``number`` counts from 1. ``digest``
is the SHA-256, in hexadecimal, of the line without it; ``previous`` is the digest of the record before,
:data:`NOTHING` in the first. So nothing can be changed, put in, taken out or moved without that everything behind it
is written again. What cannot be seen from the records alone is that the last ones were cut off: for that the last
digest has to be known from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qmpfilter.errors import BugError

__all__ = ["NOTHING", "Fault", "Link", "Verifier", "sealed"]

NOTHING: Final = "0" * 64
"""What stands before the first record."""

_OURS: Final = frozenset({"number", "previous", "digest"})


@dataclass(frozen=True, slots=True)
class Link:
    """What the next record refers to."""

    number: int = 0
    digest: str = NOTHING


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is not what its place demands.

    :param cut: it is the beginning of a record, as a host leaves it that goes down while it writes; nobody forged
        anything if this is all there is
    """

    what: str
    cut: bool = False


def sealed(body: Mapping[str, Any], after: Link) -> tuple[bytes, Link]:
    """The line of a record, and what the next one refers to.

    :raises BugError: the body has keys that only the chain has
    """
    if _OURS & body.keys():
        raise BugError(f"a record with {', '.join(sorted(_OURS & body.keys()))} of its own")
    record = {**body, "number": after.number + 1, "previous": after.digest}
    digest = _digest(_canonical(record))
    return _canonical({**record, "digest": digest}) + b"\n", Link(after.number + 1, digest)


class Verifier:
    """Reads lines in their order.

    :param after: what came before the first; None if that is not known any more
    :ivar last: the link of the last record that was whole
    """

    def __init__(self, after: Link | None = Link()) -> None:  # frozen
        self.last = after

    def take(self, line: bytes) -> tuple[dict[str, Any] | None, Fault | None]:
        """The record of a line, if it is one, and what is wrong with it."""
        if not line.endswith(b"\n"):
            return None, Fault("the record is not complete", cut=True)
        try:
            record = json.loads(line)
            link = Link(record["number"], record["digest"])
            sealed_part = _canonical({key: value for key, value in record.items() if key != "digest"})
            intact = _canonical(record) + b"\n" == line and _digest(sealed_part) == link.digest
        except (ValueError, TypeError, KeyError, AttributeError):
            return None, Fault("not a record")
        if not intact:
            return record, Fault("the record was changed: its digest is that of another")
        expected, self.last = self.last, link
        if expected is None or (record["previous"], link.number) == (expected.digest, expected.number + 1):
            return record, None
        return record, Fault(
            f"record {link.number} does not follow on what is before it: expected record {expected.number + 1} after "
            f"{expected.digest[:12]}, found one after {str(record['previous'])[:12]}"
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
