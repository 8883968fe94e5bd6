# SPDX-License-Identifier: GPL-2.0-or-later
"""The vCPUs of a stream as the conversions take them."""

from __future__ import annotations

from collections.abc import Iterator

from qmpfilter.svm.section import CpuSection
from qmpfilter.wire.events import DeviceSection
from tests.helpers.parse import parse

__all__ = ["sections_of", "vcpus_in_l2"]


def sections_of(stream: bytes) -> Iterator[CpuSection]:
    """Every vCPU, in the stream's order."""
    for event in parse(stream).events:
        if isinstance(event, DeviceSection) and event.idstr == "cpu":
            yield CpuSection.of(event)


def vcpus_in_l2(stream: bytes) -> Iterator[CpuSection]:
    """Those with a VMCB page."""
    return (vcpu for vcpu in sections_of(stream) if vcpu.nested is not None and vcpu.nested.page is not None)
