# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rule of the verdict is: a row with a condition, the kernels that have it, and one sentence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from qmpfilter.errors import BugError
from qmpfilter.svm.findings import RULES, broken
from qmpfilter.verdict.attempt import Attempt, about
from qmpfilter.verdict.ternary import Ternary, all_of
from qmpfilter.verdict.version import Releases, Version

__all__ = ["EVERY", "Met", "Rule", "Stage", "from_findings", "that_may_speak"]

EVERY: Final = Releases("5.8+")
"""All kernels of the supported range."""

_FINDINGS: Final = {rule.code: rule for rule in RULES}


class Stage(Enum):
    """Where a destination meets a state, in this order."""

    LOAD = "load"
    """QEMU reads the vCPU's section: an error ends the migration, the source goes on with return-path."""
    SREGS = "KVM_SET_SREGS"
    """QEMU puts the registers, at the very end of the migration."""
    NESTED_STATE = "KVM_SET_NESTED_STATE"
    """QEMU puts the nested state, directly after."""
    RUN = "run"
    """Everything was accepted; what is different from the source then."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row.

    :param code: stable kebab-case name; one check that moved between stages has it once for each stage
    :param stage: where it is met
    :param field: where: ``nested_state.``, ``control.``, ``l1.`` or ``cpu.`` and the field's name there
    :param broken: the condition, in three values
    :param text: one sentence with the values, formatted with the attempt as ``a`` and its view as ``v``
    :param source: file and function of what is modelled
    :param kernels: kernels that have it
    :param finding: :mod:`qmpfilter.svm.findings` has a rule of that code, and it is broken where that one is
    """

    code: str
    stage: Stage
    field: str
    broken: Callable[[Attempt], Ternary]
    text: str
    source: str
    kernels: Releases = EVERY
    finding: bool = False

    def judge(self, attempt: Attempt) -> Ternary:
        """Whether it is broken on the attempt's destination. What was not known is then in `attempt.missing`."""
        broken = self.broken(attempt)
        if broken is False or self.kernels is EVERY:
            return broken
        return all_of(broken, attempt.kernel_has(self.kernels))

    def sentence(self, attempt: Attempt) -> str:
        """The text with the attempt's values."""
        return self.text.format(a=attempt, v=attempt.view)


class Met(NamedTuple):
    """A rule that may be broken, before one destination: what there depends on no vCPU.

    :param surely: the destination's kernel has it for certain
    :param lacked: the facts that would tell, in words
    """

    rule: Rule
    surely: bool
    lacked: frozenset[str]


def that_may_speak(rules: Iterable[Rule], found: Collection[str], kernel: Version | None) -> Iterator[Met]:
    """The rules that may be broken.

    :param found: codes of the findings that are
    :param kernel: the destination's, where it is known
    """
    lacked = frozenset((about(kernel),))
    for rule in rules:
        has_it = True if rule.kernels is EVERY else rule.kernels.have_it(kernel)
        if has_it is not False and (not rule.finding or rule.code in found):
            yield Met(rule, bool(has_it), frozenset() if has_it else lacked)


def from_findings(code: str, stage: Stage, source: str, kernels: Releases = EVERY) -> Rule:
    """The row for a check that :mod:`qmpfilter.svm.findings` has already, with its condition and sentence: only for
    attempts to which the table of that finding applies.

    :raises BugError: it has none of that code
    """
    if code not in _FINDINGS:
        raise BugError(f"no finding has the code {code}")
    finding = _FINDINGS[code]
    return Rule(code, stage, finding.field, lambda a: code in broken(a.view), finding.text, source, kernels, True)
