# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream that a filter withdraws, as the next reader sees it."""

from __future__ import annotations

import pytest

from qmpfilter.errors import StreamError, WithdrawnError
from qmpfilter.wire.withdrawal import withdrawal
from tests.helpers import build
from tests.helpers.parse import parse

LONG = f"vCPU 0: {'the kernel there checks it ' * 20}[npt]"
SETUP = build.header() + build.configuration()
TAIL = build.UNTIL_TAIL + build.timer().section()
UNKNOWN = TAIL + build.opaque(9, "PCIBUS", b"\0\0\0\x03abc").section()


@pytest.mark.parametrize("reason", ["no", LONG, "tab\tand \N{SNOWMAN}", "x" * 244, "x" * 245])
def test_a_reason_becomes_a_name_that_holds_no_end(reason: str) -> None:
    section = withdrawal(reason)
    assert 0 not in section
    assert section[5] <= 255
    name = section[6 : 6 + section[5]].decode("ascii")
    assert name.isprintable()
    assert name.startswith("qmpfilter: ")
    assert name.endswith(reason[-1] if reason.isascii() else "?")
    assert len(section) == 6 + len(name) + 8


@pytest.mark.parametrize("before", [SETUP, build.UNTIL_TAIL, TAIL, UNKNOWN], ids=len)
@pytest.mark.parametrize("chunks", [None, 1])
def test_the_next_filter_reads_the_reason(before: bytes, chunks: int | None) -> None:
    parsed = parse(before + withdrawal(LONG), chunks)
    assert isinstance(parsed.error, WithdrawnError)
    assert parsed.error.offset == len(before)
    assert str(parsed.error).startswith("vCPU 0: the kernel there")
    assert str(parsed.error).endswith("[npt]")
    # And withdraws it again, in the same words.
    assert withdrawal(str(parsed.error)) == withdrawal(LONG)


@pytest.mark.parametrize("before", [SETUP, TAIL, UNKNOWN], ids=len)
def test_one_that_is_cut_anywhere_is_only_damage(before: bytes) -> None:
    section = withdrawal("no")
    for length in range(len(section)):
        parsed = parse(before + section[:length])
        assert isinstance(parsed.error, StreamError)
        assert not isinstance(parsed.error, WithdrawnError)
