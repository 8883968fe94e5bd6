# SPDX-License-Identifier: GPL-2.0-or-later
"""The answers as virt-host-validate prints them: one line per check, and a last one that counts. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from qmpfilter.doctor.checks import Answer, Level
from qmpfilter.printable import printable

__all__ = ["render"]

# The columns of virt-host-validate (libvirt, tools/virt-host-validate-common.c); longer titles widen the second.
_SUBJECT: Final = 6
_TITLE: Final = 60

_COLOURS: Final = {Level.PASS: "\033[32m", Level.WARN: "\033[33m", Level.FAIL: "\033[31m"}
_PLAIN: Final = "\033[0m"


def render(answers: Sequence[Answer], *, colour: bool) -> str:
    """The report, with the last line's newline.

    :param colour: write PASS, WARN and FAIL in green, yellow and red, as a terminal obeys it
    """
    width = max([_TITLE, *(len(answer.title) for answer in answers)])
    lines = [_line(answer, width, colour) for answer in answers]
    return "".join(f"{line}\n" for line in [*lines, _sum(answers)])


def _line(answer: Answer, width: int, colour: bool) -> str:
    level = f"{_COLOURS[answer.level]}{answer.level}{_PLAIN}" if colour else answer.level
    hint = f" ({answer.hint})" if answer.hint else ""
    return printable(f"{answer.subject:>{_SUBJECT}}: Checking {answer.title:<{width}}: ") + level + printable(hint)


def _sum(answers: Sequence[Answer]) -> str:
    count = Counter(answer.level for answer in answers)
    fit = "is not fit for" if count[Level.FAIL] else "can take"
    return (
        f"This host {fit} guests that run guests: "
        f"{count[Level.PASS]} passed, {count[Level.WARN]} warned, {count[Level.FAIL]} failed."
    )
