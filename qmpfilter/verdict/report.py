# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream's verdict as text for a person, and as what JSON is made of."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill
from typing import Any, Final

from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.judge import Answer, Outcome, Reason, StreamVerdict, Verdict
from qmpfilter.verdict.rule import Stage

__all__ = ["FORMAT", "as_json", "as_text"]

FORMAT: Final = 1
"""Counted up when a key changes its meaning or goes."""

_WIDTH: Final = 80
_ANSWERS: Final = {
    Answer.REFUSES: "refused by {by}",
    Answer.MIGHT_REFUSE: "perhaps refused by {by}",
    Answer.LOSES: "lost",
    Answer.MIGHT_LOSE: "perhaps lost",
}
_BY: Final = {stage: stage.value for stage in Stage} | {Stage.LOAD: "QEMU's loading"}
_SILENT: Final = {
    True: "Nobody would notice: QEMU up to 8.1 ignores what its kernel refuses, reports success, and runs the guest "
    "on with wrong registers.",
    None: "QEMU's version is not known: up to 8.1 it would ignore the kernel's refusal, report success, and run the "
    "guest on with wrong registers.",
}


def as_text(verdict: StreamVerdict, facts: HostFacts, name: str) -> str:
    """Lines of at most 80 columns: the answer, then a block for each vCPU.

    :param name: what the stream is called
    """
    return "".join(f"{line}\n" for line in _lines(verdict, facts, name))


def _lines(verdict: StreamVerdict, facts: HostFacts, name: str) -> Iterator[str]:
    outcome = "no vCPU" if verdict.outcome is None else verdict.outcome.value
    yield f"{name}: {outcome} ({_destination(facts)})"
    for index, one in verdict.vcpus.items():
        yield f"vCPU {index}: {one.outcome.value}"
        for reason in one.reasons:
            yield _wrapped(f"{_answer(reason)}: {reason.text} [{reason.code}]")
        if one.outcome in (Outcome.REFUSED, Outcome.UNKNOWN) and one.silent is not False:
            yield _wrapped(_SILENT[one.silent])
    yield from (fill(f"Note: {note}", _WIDTH, subsequent_indent="  ") for note in _notes(verdict))


def _answer(reason: Reason) -> str:
    said = _ANSWERS[reason.answer].format(by=_BY[reason.stage])
    return said if not reason.missing else f"{said} (not known: {', '.join(reason.missing)})"


def _wrapped(text: str) -> str:
    return fill(text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _destination(facts: HostFacts) -> str:
    kernel = "not known" if facts.kernel is None else str(facts.kernel)
    qemu = "not known" if facts.qemu_version is None else str(facts.qemu_version)
    return f"kernel {kernel}, QEMU {qemu}"


def _notes(verdict: StreamVerdict) -> list[str]:
    return list(dict.fromkeys(note for one in verdict.vcpus.values() for note in one.notes))


def as_json(verdict: StreamVerdict, facts: HostFacts) -> dict[str, Any]:
    """What :func:`json.dumps` takes."""
    return {
        "format": FORMAT,
        "outcome": None if verdict.outcome is None else verdict.outcome.value,
        "kernel": None if facts.kernel is None else str(facts.kernel),
        "qemu": None if facts.qemu_version is None else str(facts.qemu_version),
        "vcpus": [{"index": index, **_vcpu_as_json(one)} for index, one in verdict.vcpus.items()],
        "notes": _notes(verdict),
    }


def _vcpu_as_json(one: Verdict) -> dict[str, Any]:
    return {
        "outcome": one.outcome.value,
        "silent": one.silent,
        "reasons": [
            {
                "code": reason.code,
                "answer": reason.answer.value,
                "stage": reason.stage.value,
                "field": reason.rule.field,
                "text": reason.text,
                "missing": list(reason.missing),
                "source": reason.rule.source,
            }
            for reason in one.reasons
        ],
    }
