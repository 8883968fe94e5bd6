# SPDX-License-Identifier: GPL-2.0-or-later
"""What the operator wants of one migration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from qmpfilter.errors import PolicyError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.judge import Answer, Reason, Verdict

__all__ = ["LOST_ANYWAY", "Enforcement", "Mode", "Policy", "objections"]


class Mode(StrEnum):
    """What is done to a stream."""

    OFF = "off"
    """Nothing; it is not even read."""
    OBSERVE = "observe"
    """It is read and judged, and passes as it is."""
    ANNEX = "annex"
    """Legacy state gets its svm2 record: every kernel and QEMU takes it."""
    LEGACY = "legacy"
    """Records are taken out."""
    NATIVE = "native"
    """svm2 alone: only for a peer that announced it."""

    @property
    def target(self) -> Carrier:
        """The carrier that the nested state gets; of OBSERVE, what it would get by default."""
        return Carrier(self.value) if self in (Mode.ANNEX, Mode.LEGACY, Mode.NATIVE) else Carrier.ANNEX


class Enforcement(StrEnum):
    """What follows from a verdict."""

    ENFORCE = "enforce"
    """A migration that would be refused, or lose what must not be lost, is stopped before the commit point."""
    WARN = "warn"
    """It is said."""
    OFF = "off"
    """No verdict is made."""


# Losses (qmpfilter.verdict.losses) of every migration from KVM to KVM, between any kernels; and bits that a newer
# kernel clears because they mean nothing to the guest.
LOST_ANYWAY: Final = frozenset({
    "dr7-guess", "lbr", "l1-lbr", "hyperv", "error-code-missing",
    "tlb-ctl", "int-vector", "int-state", "event-inj-reserved",
    "intercept-xsetbv", "intercept-rdtscp", "intercept-skinit", "intercept-rdpru", "intercept-invpcid",
})  # fmt: skip
_NATIVE_FORMAT: Final = "svm2"


@dataclass(frozen=True, slots=True)
class Policy:
    """Frozen when a migration begins.

    :param mode: what is done to the stream
    :param enforcement: what follows from the verdict
    :param facts: of the destination, as far as they are known
    :param accepted: codes of the losses that are accepted
    :param without_return_path: a source that asks for no return path is served all the same
    :param peer_tells: the destination's filter tells its facts before the stream (:meth:`informed`)
    :raises PolicyError: native svm2 for a destination that did not announce it
    """

    mode: Mode = Mode.ANNEX
    enforcement: Enforcement = Enforcement.ENFORCE
    facts: HostFacts = field(default_factory=HostFacts)
    accepted: frozenset[str] = LOST_ANYWAY
    without_return_path: bool = False
    peer_tells: bool = False

    def __post_init__(self) -> None:
        if self.mode is Mode.NATIVE and not self.peer_tells and _NATIVE_FORMAT not in self.facts.formats:
            raise PolicyError(
                "native svm2 goes only to a destination whose facts announce it (formats), because any other ends on "
                "it: use annex"
            )

    def informed(self, facts: HostFacts, native: bool) -> Policy:
        """The policy once the destination's filter has told its facts, which count where the operator gave none.

        :param native: it takes native svm2, whatever its host does
        :raises PolicyError: native svm2 is wanted, and it does not take that
        """
        known = facts if self.facts == HostFacts() else self.facts
        if native and _NATIVE_FORMAT not in known.formats:
            known = replace(known, formats=(*known.formats, _NATIVE_FORMAT))
        return replace(self, facts=known, peer_tells=False)


def objections(verdict: Verdict, policy: Policy) -> Iterator[Reason]:
    """The reasons of a verdict for which a migration is to be stopped. What is not known is no reason."""
    for reason in verdict.reasons:
        lost = reason.answer is Answer.LOSES and reason.code not in policy.accepted
        if lost or reason.answer is Answer.REFUSES:
            yield reason
