# SPDX-License-Identifier: GPL-2.0-or-later
"""What is told of one migration when it is over. Never guest memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from qmpfilter.filter.gate import Gate
from qmpfilter.inspect.state import differing, state_of
from qmpfilter.relay.pair import Link
from qmpfilter.relay.relay import Relay
from qmpfilter.relay.session import SENTENCES, Outcome
from qmpfilter.svm.provenance import Confidence
from qmpfilter.wire import cpu

__all__ = ["FORMAT", "as_json", "as_text"]

_log: Final = logging.getLogger(__name__)

FORMAT: Final = 1
"""Counted up when a key changes its meaning or goes."""

_NONE: Final[Mapping[str, Link]] = MappingProxyType({})
# Some kilobytes each.
_MOST_STATES: Final = 64

_KEEPS: Final = (Outcome.REFUSED, Outcome.VETOED, Outcome.FAILED, Outcome.STOPPED)
"""How a migration ends that leaves the guest at the source."""


def as_json(relay: Relay, gate: Gate, links: Mapping[str, Link] = _NONE) -> dict[str, Any]:
    """What :func:`json.dumps` takes.

    :param links: other filters that were agreed with, by the side where they are
    """
    session, policy = relay.session, gate.policy
    before, after = gate.digests
    return {
        "format": FORMAT,
        "outcome": None if session.outcome is None else session.outcome.value,
        "reason": session.reason,
        "mode": policy.mode.value,
        "verdict": policy.enforcement.value,
        "facts": {
            "kernel": None if policy.facts.kernel is None else str(policy.facts.kernel),
            "qemu": None if policy.facts.qemu_version is None else str(policy.facts.qemu_version),
            "missing": sorted(gate.missing),
        },
        "pair": {side: link.as_json() for side, link in links.items()},
        "machine": gate.machine,
        "return_path": gate.return_path,
        "channels": [channel.value for channel in relay.channels],
        "bytes": {"forward": relay.forward, "backward": relay.backward},
        "traffic": [
            {"channel": channel.value, "forward": forward, "backward": backward}
            for channel, forward, backward in relay.traffic
        ],
        "moments": {name: moment.isoformat(timespec="milliseconds") for name, moment in relay.moments.items()},
        "seconds": {name: round(seconds, 6) for name, seconds in relay.times.items()},
        "switched_off": gate.switched_off,
        "edited_vcpus": gate.edits,
        "vmcb12_pages_read": gate.memory_read,
        "tail_sha256": {"before": before, "after": after},
        "vcpus": [
            {
                "index": vcpu.index,
                "offset": vcpu.offset,
                "outcome": vcpu.outcome.name.lower(),
                "found": vcpu.found,
                "findings": [{"code": found.code, "text": found.text} for found in vcpu.findings],
                "inexact": [
                    {"field": one.field, "confidence": one.confidence.value, "why": one.why}
                    for one in vcpu.fields
                    if one.confidence is not Confidence.EXACT
                ],
            }
            for vcpu in gate.vcpus
        ],
        "verdicts": [
            {
                "index": judged.index,
                "outcome": judged.verdict.outcome.value,
                "reasons": [
                    {"code": reason.code, "answer": reason.answer.value, "text": reason.text}
                    for reason in judged.verdict.reasons
                ],
            }
            for judged in gate.judged
        ],
        "states": _states(gate),
        "warnings": gate.warnings,
        "after_commit": session.late,
    }


def _states(gate: Gate) -> list[dict[str, Any]]:
    """Of the vCPUs with nested state, what is to be known of it before, and what is another after; when observing,
    what would be. Only for when the migration is over: it takes some milliseconds each."""
    edited = {vcpu.offset: vcpu.section for vcpu in gate.vcpus}
    nested = [section for section in gate.sections if section.subsection(cpu.NESTED_STATE.name) is not None]
    told: list[dict[str, Any]] = []
    for section in nested[:_MOST_STATES]:
        after = edited.get(section.offset)
        try:
            before = state_of(section)
            changes = {} if after is None else differing(before, state_of(after))
        except Exception:
            # The rest of the report is worth more than this.
            _log.exception("the state of vCPU %d", section.instance_id)
            continue
        told.append({"index": section.instance_id, "before": before, "after": changes})
    return told


def as_text(relay: Relay, gate: Gate, links: Mapping[str, Link] = _NONE) -> str:
    """A few lines for a person."""
    session = relay.session
    assert session.outcome is not None
    lines = [f"{session.outcome.value}: {SENTENCES[session.outcome]}"]
    if session.reason:
        lines.append(f"  reason: {session.reason}")
    edits = f"{gate.edits} of {len(gate.vcpus)} vCPUs edited"
    lines.append(f"  {relay.forward} bytes forward, {relay.backward} back, {len(relay.channels)} channels; {edits}")
    for side, link in links.items():
        tls = link.secured
        secured = f"{tls.version}, {tls.cipher}, certificate {tls.subject}" if tls else "unencrypted"
        lines.append(f"  a pair with qmpfilter {link.program} at the {side}, {secured}")
    if "tail" in relay.times:
        lines.append(f"  device state held for {relay.times['tail'] * 1e3:.1f} ms")
    if gate.missing:
        missing = ", ".join(sorted(gate.missing))
        lines.append(f"  not known of the destination, so that only what no kernel takes was stopped: {missing}")
    if session.outcome in _KEEPS and "connected" in relay.moments and gate.admitted and not gate.return_path:
        lines.append(
            "  the source waits for no answer: where it says completed all the same, have it go on (QMP: cont)"
        )
    lines += [f"  after the commit point, where nothing stops a migration any more: {text}" for text in session.late]
    lines += [f"  warning: {text}" for text in gate.warnings]
    return "".join(f"{line}\n" for line in lines)
