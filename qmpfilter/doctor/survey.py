# SPDX-License-Identifier: GPL-2.0-or-later
"""What was found on a host: the facts that a verdict reads, and what else the checks ask for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.version import Version

__all__ = ["Survey"]


@dataclass(frozen=True, slots=True)
class Survey:
    """One look at one host.

    :param vendor: ``vendor_id`` of /proc/cpuinfo, empty for processors that are not x86; None if it cannot be read
    :param cpu_flags: ``flags`` of the first processor in /proc/cpuinfo
    :param modules: those of KVM's modules that are loaded or built in
    :param device_error: errno of opening /dev/kvm or of the first question to it; None if it answered
    :param qemu_said: what each QEMU of the facts said of itself, by path, or why it said nothing
    :param libvirt: version of libvirt's daemon, None where there is none or it does not tell
    """

    facts: HostFacts
    vendor: str | None = None
    cpu_flags: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    device_error: int | None = None
    qemu_said: Mapping[str, str] = field(default_factory=dict)
    libvirt: Version | None = None
