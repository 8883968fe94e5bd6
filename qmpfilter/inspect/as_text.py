# SPDX-License-Identifier: GPL-2.0-or-later
"""A report as text for a person. Only this module imports rich, which takes its time."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qmpfilter.inspect.collect import BlockRecords, Report
from qmpfilter.inspect.vcpu import Vcpu
from qmpfilter.svm import native, vmcb
from qmpfilter.svm.findings import Severity
from qmpfilter.svm.legacy import Era, LegacyState, flag_names
from qmpfilter.svm.segment import Segment
from qmpfilter.svm.svm2 import Svm2Flags, Svm2State, Validity
from qmpfilter.wire import cpu

__all__ = ["hex_dump", "render"]

_CONTROL_SHOWN: Final = (
    "iopm_base_pa", "msrpm_base_pa", "tsc_offset", "asid", "int_ctl", "int_state", "nested_cr3", "next_rip",
)  # fmt: skip
_L1_SHOWN: Final = ("rip", "rsp", "rax", "rflags", "cr0", "cr3", "cr4", "efer")
_L2_SHOWN: Final = (
    "cr0", "cr2", "cr3", "cr4", "efer", "pat",
    "dr0", "dr1", "dr2", "dr3", "dr6", "dr7",
    "star", "lstar", "cstar", "fmask", "kernelgsbase", "sysenter_cs",
    "sysenter_esp", "sysenter_eip", "xcr0", "tsc_aux", "vm_hsave", "hflags",
)  # fmt: skip
_MOST_COLUMNS: Final = 4
# Few section names are longer, and with it the table fits 80 columns.
_NAME_WIDTH: Final = 24
# A register's name and value, the space behind each, and a share of the indentation.
_COLUMN_WIDTH: Final = 36
_WIDTH_WITHOUT_TERMINAL: Final = 160
_ROW_BYTES: Final = 16
_SEVERITY_STYLE: Final = {Severity.REFUSE: "bold red", Severity.WARN: "yellow"}


def render(
    report: Report,
    source: dict[str, Any],
    *,
    terminal: bool = False,
    only_vcpus: Collection[int] = (),
    only_sections: bool = False,
    dumps: bool = False,
) -> str:
    """The report as text; empty if the input was refused at its first bytes.

    :param source: what is known of the input itself
    :param terminal: for a terminal: with colours, and as wide as it is
    :param only_vcpus: show these vCPUs and nothing else; all when empty
    :param only_sections: show the section table and nothing else
    :param dumps: add hexadecimal dumps of the VMCB pages
    """
    if report.configuration is None:
        return ""
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=terminal,
        width=None if terminal else _WIDTH_WITHOUT_TERMINAL,
        highlight=False,
        markup=False,
        emoji=False,
    )
    parts: list[RenderableType] = []
    if not only_vcpus and not only_sections:
        parts.append(_summary(report, report.configuration.machine, source))
    if not only_vcpus:
        parts.append(_sections(report))
    if not only_sections:
        columns = max(1, min(_MOST_COLUMNS, console.width // _COLUMN_WIDTH))
        chosen = (vcpu for vcpu in report.vcpus if not only_vcpus or vcpu.index in only_vcpus)
        parts += [_vcpu(vcpu, columns, dumps=dumps) for vcpu in chosen]
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(part)
    # Tables pad their last column, which is noise in a file or a pipe.
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _pairs() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _summary(report: Report, machine: str, source: dict[str, Any]) -> RenderableType:
    table = _pairs()
    table.add_row("input", _source_text(source))
    table.add_row("machine", machine)
    table.add_row("capabilities", ", ".join(report.capabilities()) or "none that the stream shows")
    totals = report.totals
    size = f"{_size(report.ram_total)} in {len(report.blocks)} blocks"
    table.add_row("RAM", f"{size}; {totals.pages} page records: {_kinds(totals)}")
    for block in report.blocks:
        records = report.records[block.name]
        table.add_row("", f"{block.name}: {_size(block.length)}, {_kinds(records)}")
    in_l2 = [f"vCPU {vcpu.index}" for vcpu in report.vcpus if vcpu.in_l2]
    states = f"; in L2: {', '.join(in_l2)}" if in_l2 else "; none in L2" if report.vcpus else ""
    if report.error and not report.vcpus:
        states = " read"
    undecoded = f"; {report.undecoded_vcpus} of an unknown version, not decoded" if report.undecoded_vcpus else ""
    table.add_row("vCPUs", f"{len(report.vcpus)}{states}{undecoded}")
    table.add_row("ends", _end_text(report))
    return table


def _kinds(records: BlockRecords) -> str:
    """How many records of each kind, without those that there are none of."""
    kinds = (
        (records.normal, "normal"),
        (records.zero, "zero"),
        (records.xbzrle, "XBZRLE"),
        (records.compressed, "compressed"),
    )
    return ", ".join(f"{count} {kind}" for count, kind in kinds if count) or "none on this channel"


def _source_text(source: dict[str, Any]) -> str:
    parts = [str(source["kind"])]
    if source.get("domain"):
        parts.append(f"of domain {source['domain']!r}")
    if source.get("compression"):
        parts.append(f"compressed with {source['compression']}")
    return f"{' '.join(parts)}, {source['stream_bytes']} bytes of stream"


def _end_text(report: Report) -> str:
    if report.error is not None:
        return f"not read to its end: cut, damaged or unsupported at offset {report.error.offset:#x}"
    if report.postcopy:
        return "complete, switched to postcopy (device sections divided by known layouts and footers)"
    return "complete, divided and checked by vmdesc"


def _size(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.0f} KiB"


def _sections(report: Report) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("offset", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("section", no_wrap=True)
    table.add_column("name", overflow="fold", min_width=_NAME_WIDTH)
    for title in ("id", "inst", "ver"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("end by", no_wrap=True)
    for row in report.sections:
        kind = f"{row.type} x{row.count}" if row.count > 1 else row.type
        numbers = (row.section_id, row.instance_id, row.version_id)
        table.add_row(
            f"{row.offset:#x}",
            str(row.size),
            kind,
            row.name,
            *("" if number is None else str(number) for number in numbers),
            row.delimited_by.value if row.delimited_by else "",
        )
    if report.rows_left_out:
        table.add_row("", "", f"... and {report.rows_left_out} more")
    return table


def _vcpu(vcpu: Vcpu, columns: int, *, dumps: bool) -> RenderableType:
    place = "in L2" if vcpu.in_l2 else "not in L2"
    smm = ", in SMM" if vcpu.in_smm else ""
    parts: list[RenderableType] = [
        Text(f"vCPU {vcpu.index}: {place}{smm} (section at {vcpu.offset:#x}, {vcpu.size} bytes)", style="bold")
    ]
    if vcpu.vmx:
        parts.append(_indented(Text("nested state of Intel VMX: not decoded")))
    elif vcpu.nested is None:
        parts.append(_indented(Text("no nested state in the stream")))
    else:
        parts.append(_indented(_nested_state(vcpu.nested)))
        if vcpu.svm2 is not None:
            carrier = "native state" if vcpu.nested.format == native.FORMAT else "a record"
            parts.append(_indented(_svm2(vcpu.svm2, carrier)))
        if dumps and vcpu.nested.page is not None:
            parts.append(_indented(Text("VMCB12 control area and L1 save area, zero rows left out", style="bold")))
            parts.append(_indented(Text("\n".join(hex_dump(vcpu.nested.page)))))
    parts.append(_indented(_registers(vcpu, columns)))
    if vcpu.in_l2 and vcpu.nested is not None:
        parts.append(
            _indented(Text("dr7 may be L1's: KVM gives L2's own only after L2 has touched a debug register"))
        )
    others = [sub.name.removeprefix("cpu/") for sub in vcpu.subsections if sub.name != cpu.NESTED_STATE.name]
    if others:
        table = _pairs()
        table.add_row("subsections", ", ".join(others))
        parts.append(_indented(table))
    for finding in vcpu.findings:
        style = _SEVERITY_STYLE[finding.severity]
        parts.append(_indented(Text(f"{finding.severity.value}: {finding.text} [{finding.code}]", style=style)))
    return Group(*parts)


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2))


def _nested_state(state: LegacyState) -> RenderableType:
    table = _pairs()
    table.add_row("flags", f"{state.flags:#x} {' '.join(flag_names(state.flags))}")
    if state.page is None:
        table.add_row("page", "none")
        return table
    table.add_row("vmcb_pa", f"{state.vmcb_pa:#x}")
    table.add_row("intercepts", ", ".join(vmcb.intercepts(state.control)) or "none")
    table.add_row("VMCB12", _named((name, vmcb.CONTROL.get(state.control, name)) for name in _CONTROL_SHOWN))
    for name, bits in (("int_ctl", vmcb.IntCtl), ("int_state", vmcb.IntState)):
        if value := vmcb.CONTROL.get(state.control, name):
            table.add_row("", f"{name} {' '.join(vmcb.named_bits(bits, value))}")
    paging = vmcb.CONTROL.get(state.control, "misc_ctl") & vmcb.MiscCtl.NP
    table.add_row("", f"nested paging {'on' if paging else 'off'}")
    event = vmcb.EventInjection.from_control(state.control)
    table.add_row("EVENTINJ", str(event) if event.valid else "none")
    table.add_row(
        "L1 save", f"as taken from {state.era.value}" if state.era is not Era.UNKNOWN else "of unknown origin"
    )
    table.add_row("", _named((name, vmcb.SAVE.get(state.save, name)) for name in _L1_SHOWN))
    for name in ("cs", "ss", "ds", "es"):
        table.add_row("", f"{name:<3} {Segment.from_save(state.save, name)}")
    return table


def _svm2(state: Svm2State, carrier: str) -> RenderableType:
    table = _pairs()
    table.add_row("svm2", f"{carrier} of producer {state.producer}, version {state.producer_version}")
    table.add_row("", f"flags {' '.join(vmcb.named_bits(Svm2Flags, state.flags)) or 'none'}")
    table.add_row("", f"exact {' '.join(vmcb.named_bits(Validity, state.validity)) or 'nothing that may be guessed'}")
    return table


def _named(values: Iterator[tuple[str, int]]) -> str:
    return " ".join(f"{name}={value:#x}" for name, value in values)


def _registers(vcpu: Vcpu, columns: int) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(columns):
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(no_wrap=True)
    names = (*cpu.GENERAL_REGISTERS, "rip", "rflags", *_L2_SHOWN)
    cells = [cell for name in names for cell in (name, f"{vcpu.registers[name]:#x}")]
    width = 2 * columns
    for start in range(0, len(cells), width):
        table.add_row(*cells[start : start + width])
    segments = _pairs()
    for name in vmcb.SEGMENTS:
        segment = Segment.from_cpu(vcpu.block, name)
        table_register = name in ("gdtr", "idtr")
        segments.add_row(name, f"base {segment.base:#x} limit {segment.limit:#x}" if table_register else str(segment))
    title = "L2's registers" if vcpu.in_l2 else "registers"
    events = _pairs()
    events.add_row("pending", _pending(vcpu))
    return Group(Text(title, style="bold"), table, segments, events)


def _pending(vcpu: Vcpu) -> str:
    """Events of the vCPU itself: those that were being delivered when it stopped."""
    registers = vcpu.registers
    found = []
    if registers["exception_nr"] >= 0:
        found.append(f"exception {registers['exception_nr']}")
    if registers["interrupt_injected"] >= 0:
        soft = "software interrupt" if registers["soft_interrupt"] else "interrupt"
        found.append(f"{soft} {registers['interrupt_injected']:#x}")
    if registers["nmi_injected"]:
        found.append("NMI being injected")
    if registers["nmi_pending"]:
        found.append("NMI pending")
    return ", ".join(found) or "no event"


def hex_dump(data: bytes) -> Iterator[str]:
    """Rows of 16 bytes with their offsets; rows that are all zero are left out."""
    for start in range(0, len(data), _ROW_BYTES):
        row = data[start : start + _ROW_BYTES]
        if any(row):
            yield f"{start:03x}  {row.hex(' ')}"
