# SPDX-License-Identifier: GPL-2.0-or-later
"""The model: numbers that are on the wire, and what a state cannot be."""

from __future__ import annotations

import dataclasses

import pytest

from qmpfilter.errors import BugError
from qmpfilter.svm.svm2 import FLAG_BITS, VALIDITY_BITS, Producer, Svm2Flags, Validity
from tests.svm.test_annex import STATE


def test_numbers_are_those_of_the_format() -> None:
    assert [item.name for item in Validity] == [
        "DR7", "G_PAT", "LBR", "CET", "NEXT_RIP", "INT_STATE", "RAW_ATTRIBUTES", "SPEC_CTRL",
    ]  # fmt: skip
    assert [int(item) for item in Validity] == [1 << number for number in range(8)]
    assert (int(Svm2Flags.CONVERTED), int(Svm2Flags.AUTHORITATIVE)) == (1, 2)
    assert (int(Producer.QMPFILTER), int(Producer.LINUX)) == (1, 2)
    assert (VALIDITY_BITS, FLAG_BITS) == (0xFF, 0x3)


@pytest.mark.parametrize(
    ("run_pending", "gif", "flags"), [(False, False, 0x001), (True, False, 0x003), (False, True, 0x101)]
)
def test_state_flags(run_pending: bool, gif: bool, flags: int) -> None:
    assert dataclasses.replace(STATE, run_pending=run_pending, gif=gif).state_flags == flags


@pytest.mark.parametrize(
    "change",
    [{"l1_save": bytes(0x2FF)}, {"vmcb12_save": bytes(0x301)}, {"vmcb12_control": bytes(0x300)}, {"vmcb_pa": 0x1001}],
    ids=lambda change: next(iter(change)),
)
def test_a_state_that_cannot_be_is_a_bug(change: dict[str, bytes | int]) -> None:
    with pytest.raises(BugError):
        dataclasses.replace(STATE, **change)  # type: ignore[arg-type]  # each has its own type
