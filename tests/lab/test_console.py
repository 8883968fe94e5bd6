# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest prints is read, and what it must not print is noticed."""

from __future__ import annotations

import pytest

from tests.lab.inhost.console import SLOTS, Corruption, checksum, read_console, slot_value

CONTEXTS = 0x12A000
CONTEXT = CONTEXTS + 4096


def _line(rounds: int) -> str:
    return f"2 0 {rounds:016x} {checksum(2, 0, rounds, CONTEXT):016x}\n"


def test_progress() -> None:
    progress = read_console(f"S 0 n\n{_line(16)}v 0 {1:016x}\n{_line(32)}2 0 00", CONTEXTS)
    assert progress.modes == {0: "n"}
    assert progress.rounds == {0: [16, 32]}
    assert progress.exits == {0: 1}


def test_32_bit_l2() -> None:
    progress = read_console(f"3 a {16:016x} {checksum(3, 10, 16, CONTEXT + 20 * 4096):016x}\n", CONTEXTS)
    assert progress.rounds == {10: [16]}
    with pytest.raises(Corruption, match="checksum"):
        read_console(f"3 0 {16:016x} {checksum(2, 0, 16, CONTEXT):016x}\n", CONTEXTS)


def test_exits_are_the_rounds_of_a_vcpu_that_injects() -> None:
    progress = read_console(f"S f r\nS 1 2\nv f {0x4000:016x}\nv 1 {3:016x}\nn 2 {1:016x}\n", CONTEXTS)
    assert progress.rounds == {15: [0x4000]}
    assert progress.exits == {15: 0x4000, 1: 3}
    assert progress.nmis == {2: 1}


def test_checksum_of_another_round_is_noticed() -> None:
    line = f"2 0 {17:016x} {checksum(2, 0, 16, CONTEXT):016x}\n"
    with pytest.raises(Corruption, match="checksum"):
        read_console(line, CONTEXTS)


def test_corrupted_register_is_named() -> None:
    slot = SLOTS.index("KERNEL_GS_BASE")
    with pytest.raises(Corruption, match="KERNEL_GS_BASE"):
        read_console(f"! 0 2 {slot:016x} {1:016x} {2:016x}\n", CONTEXTS)


def test_values_tell_level_vcpu_and_slot() -> None:
    assert slot_value(2, 1, "R15", CONTEXT) >> 40 == 0xA2010F
    assert slot_value(1, 0, "GS_BASE", CONTEXT) >> 24 == 0xFFFFA10036
