# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID tables answer for features and for the width of addresses."""

from __future__ import annotations

import pytest

from qmpfilter.verdict.cpuid import FEATURES, Cpuid, CpuidRow

SIZES = 0x8000_0008


def _table(*rows: CpuidRow) -> Cpuid:
    return Cpuid((CpuidRow(0x8000_0000, 0, 0, 0x8000_0021, 0, 0, 0), *rows))


@pytest.mark.parametrize("feature", FEATURES)
def test_feature_is_its_own_bit(feature: str) -> None:
    at = FEATURES[feature]
    registers = dict.fromkeys(("eax", "ebx", "ecx", "edx"), 0) | {at.register: 1 << at.bit}
    table = _table(CpuidRow(at.function, at.index, 0, **registers))
    assert [name for name in FEATURES if table.has(name)] == [feature]
    assert not table.changed(without=[feature]).has(feature)


def test_subleaf_counts_where_its_flag_says_so() -> None:
    table = _table(CpuidRow(7, 1, 1, 0, 1 << 7, 0, 0), CpuidRow(7, 0, 1, 0, 0, 0, 0))
    assert not table.has("SMEP")


@pytest.mark.parametrize(
    ("rows", "bits"),
    [
        ([CpuidRow(SIZES, 0, 0, 0x3028, 0, 0, 0)], 0x28),
        ([], 36),
    ],
)
def test_width_of_addresses(rows: list[CpuidRow], bits: int) -> None:
    assert _table(*rows).maxphyaddr == bits


def test_width_is_not_read_beyond_the_highest_leaf() -> None:
    assert Cpuid((CpuidRow(SIZES, 0, 0, 48, 0, 0, 0),)).maxphyaddr == 36


def test_width_can_be_changed() -> None:
    assert _table(CpuidRow(SIZES, 0, 0, 0x3028, 0, 0, 0)).changed(maxphyaddr=40).maxphyaddr == 40
