# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be said of a migration before there is a stream: by the destination's facts, and by which vCPUs use SVM.

Source: QEMU 10.2.2 target/i386/cpu-dump.c (x86_cpu_dump_state); APM volume 2, 3.1.7 (EFER).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from qmpfilter.filter.policy import Enforcement, Mode, Policy
from qmpfilter.verdict.judge import HEEDS_REFUSAL

__all__ = ["REGISTERS", "outlook", "svm_use"]

REGISTERS: Final = "info registers -a"
"""The line for the human monitor. The guest is not stopped for it."""

_EFER: Final = re.compile(r"\bEFER=([0-9a-f]{16})")
_SVME: Final = 1 << 12


def svm_use(text: str) -> str:
    """A sentence on who uses SVM.

    :param text: what the monitor says to :data:`REGISTERS`
    """
    values = [int(value, 16) for value in _EFER.findall(text)]
    using = [str(index) for index, value in enumerate(values) if value & _SVME]
    if not values:
        return "QEMU does not say which vCPUs use SVM"
    if not using:
        return f"at the moment none of the {len(values)} vCPUs uses SVM (EFER.SVME), so none has nested state"
    return (
        f"SVM is on (EFER.SVME) on vCPU {', '.join(using)} of {len(values)}: each may be in L2 when the guest stops"
    )


def outlook(policy: Policy) -> Iterator[str]:
    """Sentences on what awaits the guest."""
    facts = policy.facts
    known = {"kernel": facts.kernel, "QEMU": facts.qemu_version}
    flags = {"nested": facts.nested, "npt": facts.npt}
    told = [f"{name} {value}" for name, value in known.items() if value is not None]
    told += [f"{name}={int(value)}" for name, value in flags.items() if value is not None]
    missing = [name for name, value in {**known, **flags, "CPUID": facts.supported_cpuid}.items() if value is None]
    yield f"policy: mode {policy.mode.value}, verdict {policy.enforcement.value}"
    yield f"known of the destination: {', '.join(told) or 'nothing, for want of --host'}"
    if told and missing:
        yield f"not known of it: {', '.join(missing)}"
    if facts.nested is False:
        yield "kvm_amd there has nested=0: a vCPU that has nested state will be refused"
    if told and HEEDS_REFUSAL.have_it(facts.qemu_version) is False:
        yield "its QEMU passes over what its kernel refuses, and would run a broken guest"
    if policy.mode is Mode.OFF or policy.enforcement is Enforcement.OFF:
        yield "no verdict will be made"
        return
    yield (
        "not known before the stream: the state of each vCPU, for which the guest would have to stand still; the "
        "verdict on it is made then, before the destination can start the guest"
    )
