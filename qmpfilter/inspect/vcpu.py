# SPDX-License-Identifier: GPL-2.0-or-later
"""Decodes a `cpu` section: registers, subsections, nested state, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qmpfilter.errors import RecordError
from qmpfilter.filter.carrier import carried
from qmpfilter.svm.findings import Finding, Severity, examine
from qmpfilter.svm.legacy import LegacyState
from qmpfilter.svm.section import CpuSection
from qmpfilter.svm.svm2 import Svm2State
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DeviceSection
from qmpfilter.wire.vmsd import Subsection, SubsectionAt

__all__ = ["SubsectionValue", "Vcpu", "decode_vcpu"]


@dataclass(frozen=True, slots=True)
class SubsectionValue:
    """A subsection of a vCPU: `offset` in the stream, `values` empty where its layout is not known."""

    name: str
    offset: int
    size: int
    declared: Subsection | None
    values: dict[str, Any]
    children: tuple[SubsectionValue, ...]


@dataclass(frozen=True, slots=True)
class Vcpu:
    """One vCPU: the decoded fields of its section, and its nested state if it has one.

    `vmx` is True for a nested state of VMX, which is named and not decoded. `svm2` is what the
    annex of the nested state's page, or native nested state, holds, if it is good; of the latter, `nested` is what
    the legacy half would be.
    """

    index: int
    offset: int
    size: int
    block: bytes
    registers: dict[str, Any]
    subsections: tuple[SubsectionValue, ...]
    nested: LegacyState | None
    svm2: Svm2State | None
    vmx: bool
    findings: tuple[Finding, ...]

    @property
    def in_l2(self) -> bool:
        """The vCPU was running its nested guest when it was stopped (hflags bit 21)."""
        return bool(self.registers["hflags"] & cpu.HF_GUEST)

    @property
    def in_smm(self) -> bool:
        """The vCPU was in system management mode (hflags bit 19)."""
        return bool(self.registers["hflags"] & cpu.HF_SMM)


def decode_vcpu(section: DeviceSection) -> Vcpu:
    """Decode a `cpu` section of version 12."""
    told = CpuSection.of(section)
    nested, found = told.nested, None
    try:
        found = carried(told)
    except RecordError as error:
        findings = examine(nested, told.block, told.subsections)
        findings.append(Finding("svm2-record", Severity.REFUSE, f"The svm2 record is damaged: {error}.", "svm2"))
    else:
        # The rules are about legacy state: native state is judged as what its legacy half would be.
        judged = nested if found is None else found.legacy
        findings = examine(judged, told.block, told.subsections)
        if found is not None and nested is not None:
            nested = dataclasses.replace(found.legacy, format=nested.format, size=nested.size)
    return Vcpu(
        section.instance_id,
        section.offset,
        len(section.raw),
        told.block,
        cpu.BLOCK.parse(told.block),
        tuple(_subsection(section, sub, cpu.SUBSECTIONS.get(sub.name)) for sub in section.subsections),
        nested,
        found.state if found is not None else None,
        told.vmx,
        tuple(findings),
    )


def _subsection(section: DeviceSection, at: SubsectionAt, declared: Subsection | None) -> SubsectionValue:
    payload = section.raw[at.payload : at.payload + at.payload_size]
    fits = declared is not None and len(payload) == declared.layout.size
    return SubsectionValue(
        at.name,
        section.offset + at.start,
        at.end - at.start,
        declared,
        declared.layout.parse(payload) if declared and fits else {},
        tuple(
            _subsection(section, child, declared.children.get(child.name) if declared else None)
            for child in at.children
        ),
    )
