# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict: walks the rules for one vCPU, and puts the answers for several together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from qmpfilter.svm.legacy import LegacyState
from qmpfilter.svm.section import CpuSection
from qmpfilter.svm.view import View
from qmpfilter.value_class import value_class
from qmpfilter.verdict.attempt import Attempt
from qmpfilter.verdict.checks import applicable
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.losses import losses
from qmpfilter.verdict.rule import Met, Rule, Stage
from qmpfilter.verdict.ternary import Ternary
from qmpfilter.verdict.version import Releases, Version

__all__ = [
    "HEEDS_REFUSAL",
    "READ",
    "Answer",
    "Outcome",
    "Reason",
    "StreamVerdict",
    "Verdict",
    "judge",
    "judge_section",
    "judge_stream",
]


class Outcome(Enum):
    """What a destination will do, the best first."""

    ACCEPTED = "accepted"
    PERHAPS_LOSS = "accepted, perhaps with loss"
    LOSS = "accepted with loss"
    UNKNOWN = "unknown"
    REFUSED = "refused"


class Answer(Enum):
    """What a reason stands for."""

    REFUSES = "refuses"
    MIGHT_REFUSE = "might refuse"
    LOSES = "loses"
    MIGHT_LOSE = "might lose"


class Reason(NamedTuple):
    """One rule that speaks, or might. It is put into words when somebody wants to read it, not while the guest stands
    still.

    :param rule: the rule
    :param answer: what it says
    :param lacked: facts that would decide it, in words
    :param attempt: of which it speaks
    """

    rule: Rule
    answer: Answer
    lacked: frozenset[str]
    attempt: Attempt

    @property
    def code(self) -> str:
        """The rule's."""
        return self.rule.code

    @property
    def stage(self) -> Stage:
        """Where it is met."""
        return self.rule.stage

    @property
    def text(self) -> str:
        """One sentence with the values."""
        return self.rule.sentence(self.attempt)

    @property
    def missing(self) -> tuple[str, ...]:
        """Facts that would decide it, in words, sorted."""
        return tuple(sorted(self.lacked))


@value_class
class Verdict:
    """The answer for one vCPU.

    :param outcome: in one word
    :param reasons: refusals in the order in which the destination meets them, the first is what it says; then
        losses
    :param silent: a refusal by the kernel would go unnoticed: QEMU up to 8.1 ignores it, reports success and
        runs a broken guest. None where QEMU's version is not known, False where nothing is refused that late
    :param notes: what the answer rests on
    """

    outcome: Outcome
    reasons: tuple[Reason, ...]
    silent: bool | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StreamVerdict:
    """The answers for a stream.

    :param outcome: the worst of all vCPUs', because a migration ends with the first that is refused; None for a
        stream without any
    :param vcpus: by the section's instance id
    """

    outcome: Outcome | None
    vcpus: Mapping[int, Verdict]


# accel/kvm/kvm-all.c:do_kvm_cpu_synchronize_post_init, since commit 7191f24c7f.
HEEDS_REFUSAL: Final = Releases("8.1- 8.2+")

_OUTCOMES: Final = {
    Answer.MIGHT_LOSE: Outcome.PERHAPS_LOSS,
    Answer.LOSES: Outcome.LOSS,
    Answer.MIGHT_REFUSE: Outcome.UNKNOWN,
    Answer.REFUSES: Outcome.REFUSED,
}

_FROM_BEST: Final = tuple(Outcome)
_NOTHING: Final[frozenset[str]] = frozenset()

READ: Final = {(5, 10): 262, (6, 1): 192, (6, 12): 118, (7, 2): 12, (7, 3): 4}
"""Branches whose sources were read, with the newest level of each."""

_NEWEST_QEMU: Final = Version(11, 1)


def judge(
    nested: LegacyState | None,
    block: bytes,
    subsections: Mapping[str, bytes],
    facts: HostFacts,
    *,
    view: View | None = None,
) -> Verdict:
    """What the destination will do with one vCPU.

    :param nested: its nested state; None without ``cpu/nested_state``
    :param block: the section's fixed field block, 1817 bytes
    :param subsections: payloads of the section's subsections and their children by full name
    :param facts: what is known of the destination
    :param view: of the first three, where it is at hand
    :raises BugError: `block` has the wrong length
    """
    attempt = Attempt(nested, block, subsections, facts, view)
    refusals = list(_told(applicable(attempt), attempt, Answer.REFUSES, Answer.MIGHT_REFUSE))
    reasons = (*refusals, *_told(losses(attempt), attempt, Answer.LOSES, Answer.MIGHT_LOSE))
    outcome = _worst(_OUTCOMES[reason.answer] for reason in reasons) or Outcome.ACCEPTED
    return Verdict(outcome, reasons, _silent(refusals, facts), tuple(_notes(attempt)))


def judge_section(section: CpuSection, facts: HostFacts) -> Verdict:
    """The same of a vCPU's section."""
    return judge(section.nested, section.block, section.subsections, facts, view=section.view)


def judge_stream(sections: Iterable[CpuSection], facts: HostFacts) -> StreamVerdict:
    """What the destination will do with a stream.

    :param sections: its `cpu` sections of version 12
    :param facts: what is known of the destination
    """
    vcpus = {section.index: judge_section(section, facts) for section in sections}
    return StreamVerdict(_worst(one.outcome for one in vcpus.values()), vcpus)


def _worst(outcomes: Iterable[Outcome]) -> Outcome | None:
    return max(outcomes, key=_FROM_BEST.index, default=None)


def _told(met: Iterable[Met], attempt: Attempt, surely: Answer, perhaps: Answer) -> Iterator[Reason]:
    missing = attempt.missing
    for rule, kernel_has_it, lacked in met:
        if missing:
            missing.clear()
        # Most are not broken, and the guest stands still: no call more than needed.
        broken: Ternary = rule.broken(attempt)
        if broken is False:
            continue
        if broken and kernel_has_it:
            yield Reason(rule, surely, _NOTHING, attempt)
        else:
            yield Reason(rule, perhaps, lacked | missing, attempt)


def _silent(refusals: Iterable[Reason], facts: HostFacts) -> bool | None:
    late = [reason for reason in refusals if reason.stage in (Stage.SREGS, Stage.NESTED_STATE)]
    early = any(reason.stage is Stage.LOAD and reason.answer is Answer.REFUSES for reason in refusals)
    if early or not late:
        return False
    heeds = HEEDS_REFUSAL.have_it(facts.qemu_version)
    return None if heeds is None else not heeds


def _notes(attempt: Attempt) -> Iterator[str]:
    kernel: Version | None = attempt.facts.kernel
    if kernel is not None:
        read = READ.get(kernel.branch)
        newest = ", ".join(f"{major}.{minor}.{level}" for (major, minor), level in READ.items())
        if read is None or (kernel.micro is not None and kernel.micro > read):
            yield f"Kernel {kernel} itself was not read; the rules follow those that were, up to {newest}."
    qemu = attempt.facts.qemu_version
    if qemu is not None and qemu.branch > _NEWEST_QEMU.branch:
        yield f"QEMU {qemu} itself was not read; the rules follow those that were, up to {_NEWEST_QEMU}."
    if attempt.assumed:
        yield "The guest is taken to have the CPUID features and address width that the host supports."
