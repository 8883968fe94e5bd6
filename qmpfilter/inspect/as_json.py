# SPDX-License-Identifier: GPL-2.0-or-later
"""A report as JSON values with stable keys.

Addresses and registers are hexadecimal strings without padding, like ``"0x10023f"``; offsets, sizes
and counts are numbers; fields that are signed in QEMU, up to 32 bits, are numbers too; opaque bytes are hex text.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from qmpfilter.errors import StreamError
from qmpfilter.inspect.collect import BlockRecords, Report, SectionRow
from qmpfilter.inspect.vcpu import SubsectionValue, Vcpu
from qmpfilter.layout import Layout
from qmpfilter.svm import native, vmcb
from qmpfilter.svm.findings import Finding
from qmpfilter.svm.legacy import FORMAT_SVM, FORMAT_VMX, LegacyState, flag_names
from qmpfilter.svm.svm2 import L1Visible, Svm2Flags, Svm2State, Validity
from qmpfilter.wire import cpu

__all__ = ["FORMAT", "error_as_json", "finding_as_json", "report_as_json"]

FORMAT = 1
_WIDE = 8
_MASK = (1 << 8 * _WIDE) - 1

_FORMATS = {FORMAT_SVM: "svm", FORMAT_VMX: "vmx", native.FORMAT: "svm2"}


def report_as_json(report: Report, source: dict[str, Any]) -> dict[str, Any]:
    """Everything in the report.

    :param source: what is known of the input itself (kind, compression, bytes ...), taken over as it is
    """
    configuration = report.configuration
    return {
        "format": FORMAT,
        "input": source,
        "stream": {
            "machine": configuration.machine if configuration else None,
            "uuid": str(configuration.uuid) if configuration and configuration.uuid else None,
            "capabilities": list(report.capabilities()),
            "postcopy": report.postcopy,
            "complete": report.complete,
            "eof_offset": report.eof_offset,
            "vmdesc_bytes": len(report.vmdesc.vmdesc.text) if report.vmdesc else None,
            "sections_left_out": report.rows_left_out,
        },
        "ram": {
            "total": report.ram_total,
            "stream_bytes": report.ram_bytes,
            "sections": report.ram_parts,
            "multifd_flushes": report.multifd_flushes,
            **_records(report.totals),
            "blocks": [
                {
                    "name": block.name,
                    "length": block.length,
                    "page_size": block.page_size,
                    "gpa": None if block.gpa is None else hex(block.gpa),
                    **_records(report.records[block.name]),
                }
                for block in report.blocks
            ],
        },
        "sections": [_section(row) for row in report.sections],
        "undecoded_vcpus": report.undecoded_vcpus,
        "vcpus": [vcpu_as_json(vcpu) for vcpu in report.vcpus],
        "error": error_as_json(report.error),
    }


def vcpu_as_json(vcpu: Vcpu) -> dict[str, Any]:
    """One vCPU; every field of its section, its subsections and its nested state."""
    registers = layout_as_json(cpu.BLOCK, vcpu.registers)
    segments = {
        name: {part: registers.pop(f"{name}_{part}") for part in ("selector", "base", "limit", "flags")}
        for name in cpu.SEGMENTS
    }
    return {
        "index": vcpu.index,
        "offset": vcpu.offset,
        "size": vcpu.size,
        "in_l2": vcpu.in_l2,
        "in_smm": vcpu.in_smm,
        "registers": registers,
        "segments": segments,
        "subsections": [_subsection(sub) for sub in vcpu.subsections],
        "nested_state": _nested_state(vcpu),
        "findings": [finding_as_json(finding) for finding in vcpu.findings],
    }


def layout_as_json(layout: Layout, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a layout's fields: signed numbers as numbers, others in hexadecimal.

    Signed numbers of 64 bits, which not every reader of JSON keeps exactly, are in hexadecimal too, as two's
    complement.
    """
    return {name: _value(value, number=_is_number(layout, name)) for name, value in values.items()}


def _is_number(layout: Layout, name: str) -> bool:
    return layout.is_signed(name) and layout.fields[name].size < _WIDE


def _value(value: Any, *, number: bool = False) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _value(item) for key, item in value.items()}
    return value if number else hex(value & _MASK)


def _nested_state(vcpu: Vcpu) -> dict[str, Any] | None:
    state = vcpu.nested
    if state is None:
        return None
    common = {
        "format": _FORMATS.get(state.format, hex(state.format)),
        "flags": hex(state.flags),
        "flag_names": flag_names(state.flags),
        "size": state.size,
    }
    return common if vcpu.vmx else {**common, **_svm(state), "svm2": _svm2(vcpu.svm2)}


def _svm(state: LegacyState) -> dict[str, Any]:
    if state.page is None:
        return {"vmcb_pa": None}
    event = vmcb.EventInjection.from_control(state.control)
    return {
        "vmcb_pa": hex(state.vmcb_pa),
        "era": state.era.value,
        "intercepts": vmcb.intercepts(state.control),
        "event_injection": {
            "vector": event.vector,
            "type": event.type,
            "error_code": None if event.error_code is None else hex(event.error_code),
        }
        if event.valid
        else None,
        "vmcb12_control": layout_as_json(vmcb.CONTROL, vmcb.CONTROL.parse(state.control)),
        "l1_save": layout_as_json(vmcb.SAVE, vmcb.SAVE.parse(state.save)),
    }


def _svm2(state: Svm2State | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "flags": vmcb.named_bits(Svm2Flags, state.flags),
        "exact": vmcb.named_bits(Validity, state.validity),
        "producer": state.producer,
        "producer_version": state.producer_version,
        "l1_visible": {item.name: hex(getattr(state.l1_visible, item.name)) for item in fields(L1Visible)},
        "vmcb12_save": layout_as_json(vmcb.SAVE, vmcb.SAVE.parse(state.vmcb12_save)),
    }


def _records(records: BlockRecords) -> dict[str, int]:
    return {
        "normal_pages": records.normal,
        "zero_pages": records.zero,
        "xbzrle_pages": records.xbzrle,
        "compressed_pages": records.compressed,
    }


def _section(row: SectionRow) -> dict[str, Any]:
    return {
        "offset": row.offset,
        "size": row.size,
        "type": row.type,
        "name": row.name,
        "id": row.section_id,
        "instance": row.instance_id,
        "version": row.version_id,
        "count": row.count,
        "delimited_by": row.delimited_by.value if row.delimited_by else None,
    }


def _subsection(sub: SubsectionValue) -> dict[str, Any]:
    return {
        "name": sub.name,
        "offset": sub.offset,
        "size": sub.size,
        "known": sub.declared is not None,
        "fields": _fields(sub),
        "subsections": [_subsection(child) for child in sub.children],
    }


def _fields(sub: SubsectionValue) -> dict[str, Any]:
    if sub.declared is None:
        return {}
    values = sub.values
    if sub.name in (cpu.NESTED_STATE_SVM.name, cpu.NESTED_STATE_SVM2.name):
        # The pages are shown decoded, in nested_state.
        values = {name: value for name, value in values.items() if not isinstance(value, bytes)}
    return layout_as_json(sub.declared.layout, values)


def finding_as_json(finding: Finding) -> dict[str, str]:
    """A finding, field by field."""
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "field": finding.field,
        "text": finding.text,
    }


def error_as_json(error: StreamError | None) -> dict[str, Any] | None:
    """An error of a stream, or that there was none."""
    if error is None:
        return None
    return {
        "kind": type(error).__name__,
        "offset": error.offset,
        "expected": error.expected,
        "found": error.found,
        "message": str(error),
    }
