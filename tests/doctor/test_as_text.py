# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines as virt-host-validate has them."""

from __future__ import annotations

from qmpfilter.doctor.as_text import render
from qmpfilter.doctor.checks import Answer, Level

PASSED = Answer("CPU", "for SVM", Level.PASS)
WARNED = Answer("KERNEL", "6.1.192 for carrying LBR", Level.WARN, "upgrade")
FAILED = Answer("QEMU", "if \x1b[2J tells", Level.FAIL, "it says \x07")


def test_lines_are_those_of_virt_host_validate() -> None:
    lines = render([PASSED, WARNED], colour=False).splitlines()
    # Copied from virt-host-validate of libvirt 11.3, another check's words put in.
    assert lines[0] == "   CPU: Checking for SVM                                                     : PASS"
    assert lines[1] == "KERNEL: Checking 6.1.192 for carrying LBR                                    : WARN (upgrade)"
    assert lines[2] == "This host can take guests that run guests: 1 passed, 1 warned, 0 failed."


def test_a_long_title_moves_all_the_colons() -> None:
    lines = render([PASSED, Answer("QEMU", "x" * 70, Level.PASS)], colour=False).splitlines()
    assert lines[0].index(": PASS") == lines[1].index(": PASS")


def test_failure_is_in_the_last_line() -> None:
    text = render([PASSED, FAILED], colour=False)
    assert text.endswith("This host is not fit for guests that run guests: 1 passed, 0 warned, 1 failed.\n")


def test_colour_is_written_only_when_asked_for() -> None:
    assert "\x1b" not in render([PASSED, WARNED, FAILED], colour=False)
    coloured = render([PASSED, WARNED, FAILED], colour=True)
    assert coloured.count("\x1b[0m") == 3
    assert ": \x1b[32mPASS\x1b[0m" in coloured


def test_a_terminal_obeys_nothing_of_what_was_found() -> None:
    assert "\\x1b[2J tells" in render([FAILED], colour=True)
    assert "(it says \\x07)" in render([FAILED], colour=True)
