# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU's `cpu` section as the conversions and the verdict want it: field block, subsections, nested state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from qmpfilter.svm.legacy import LegacyState
from qmpfilter.svm.view import View
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DeviceSection
from qmpfilter.wire.vmsd import SubsectionAt

__all__ = ["CpuSection"]


@dataclass(frozen=True)
class CpuSection:
    """What one section holds.

    :param index: the section's instance id, which is the vCPU's APIC id
    :param block: the fixed field block, 1817 bytes
    :param subsections: payloads of the subsections, and of their children, by full name
    :param nested: the nested state in its legacy form, None without ``cpu/nested_state``
    :param vmx: the nested state is one of VMX
    """

    index: int
    block: bytes
    subsections: Mapping[str, bytes]
    nested: LegacyState | None
    vmx: bool

    @classmethod
    def of(cls, section: DeviceSection) -> CpuSection:
        """:param section: a `cpu` section of version 12"""
        payloads = dict(_payloads(section, section.subsections))
        header = payloads.get(cpu.NESTED_STATE.name)
        svm = payloads.get(cpu.NESTED_STATE_SVM.name)
        if svm is not None and len(svm) != cpu.NESTED_STATE_SVM.layout.size:
            svm = None
        nested = None
        if header is not None and len(header) == cpu.NESTED_STATE.layout.size:
            nested = LegacyState.from_subsections(header, svm)
        return cls(
            index=section.instance_id,
            block=section.raw[section.body : section.body + cpu.BLOCK.size],
            subsections=payloads,
            nested=nested,
            vmx=nested is not None and cpu.NESTED_STATE_VMX.name in payloads,
        )

    @cached_property
    def view(self) -> View:
        """The nested state and the section side by side, read once for all who want it."""
        return View(self.nested, self.block, self.subsections)


def _payloads(section: DeviceSection, subsections: Iterable[SubsectionAt]) -> Iterator[tuple[str, bytes]]:
    for at in subsections:
        yield at.name, section.raw[at.payload : at.payload + at.payload_size]
        yield from _payloads(section, at.children)
