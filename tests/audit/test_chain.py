# SPDX-License-Identifier: GPL-2.0-or-later
"""No record can be changed, put in, taken out or moved."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qmpfilter.audit.chain import Link, Verifier, sealed
from qmpfilter.errors import BugError


def chain(count: int, after: Link = Link()) -> list[bytes]:  # noqa: B008  # frozen
    lines = []
    for number in range(count):
        line, after = sealed({"session": f"s{number}", "name": "Gast Ä"}, after)
        lines.append(line)
    return lines


def faults(lines: list[bytes], after: Link | None = Link()) -> list[tuple[int, str]]:  # noqa: B008  # frozen
    verifier = Verifier(after)
    told = [verifier.take(line)[1] for line in lines]
    return [(place, fault.what) for place, fault in enumerate(told) if fault is not None]


CHAIN = chain(6)
OTHER = chain(6, Link(1, "f" * 64))


def test_what_was_written_is_as_it_was_written() -> None:
    assert faults(CHAIN) == []
    assert faults(CHAIN[3:], None) == []
    record, _ = Verifier(None).take(CHAIN[2])
    assert record is not None
    assert (record["number"], record["session"], record["name"]) == (3, "s2", "Gast Ä")


def changed(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b"s2", b"s9"), *lines[3:]]


def spaced(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'":', b'": '), *lines[3:]]


@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        (changed, 2, "was changed"),
        (spaced, 2, "was changed"),
        (lambda lines: [*lines[:2], *lines[3:]], 2, "record 4 does not follow"),
        (lambda lines: lines[1:], 0, "record 2 does not follow"),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], 2, "does not follow"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], 2, "does not follow"),
        (lambda lines: [*lines[:2], OTHER[1], *lines[3:]], 2, "does not follow"),
        (lambda lines: [*lines[:2], b"nonsense\n", *lines[2:]], 2, "not a record"),
        (lambda lines: [*lines[:2], b"[1]\n", *lines[2:]], 2, "not a record"),
        (lambda lines: [*lines, lines[0][:20]], 6, "not complete"),
    ],
)
def test_what_was_done_to_it_is_seen(change: Callable[[list[bytes]], list[bytes]], place: int, said: str) -> None:
    found = faults(change(CHAIN))
    assert found[0][0] == place
    assert said in found[0][1]


def test_every_byte_counts() -> None:
    line = CHAIN[0]
    for place in range(len(line)):
        assert faults([line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]])


def test_what_the_chain_says_is_its_own() -> None:
    with pytest.raises(BugError):
        sealed({"digest": "mine"}, Link())
