# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU itself says of a stopped machine, to compare a decoded stream with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from .modes import L2, where

_CPU_TITLE = re.compile(r"^CPU#(\d+)$", re.MULTILINE)
_SEGMENT = re.compile(
    r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ([0-9a-f]{8}).*$", re.MULTILINE
)
_TABLE = re.compile(r"^(GDT|IDT) *= +([0-9a-f]{8,16}) ([0-9a-f]{8})", re.MULTILINE)
_FLOAT = re.compile(r"\bFPR(\d)=([0-9a-f]{16}) ([0-9a-f]{4})")
_VECTOR = re.compile(r"\b([XYZ]MM\d\d)=([0-9a-f]{16}(?: [0-9a-f]{16})*)")
_PLAIN = re.compile(r"\b([A-Z][A-Z0-9]*) ?=([0-9a-f]+)\b")


class Monitor(Protocol):
    """Something that passes commands to a QEMU."""

    def command(self, name: str, **arguments: Any) -> Any:
        """The return value of a QMP command, argument names with underscores for QMP's hyphens."""

    def human(self, line: str) -> str:
        """The output of a human monitor command."""


def parse_registers(text: str) -> dict[str, Any]:
    """The output of ``info registers`` for one vCPU as hexadecimal strings by QEMU's names.

    A segment is {selector, base, limit, flags}, GDT and IDT {base, limit}, an x87 register {mantissa, exponent}.  A
    vector register is one number, its highest word first.
    """
    values: dict[str, Any] = {}
    for name, selector, base, limit, flags in _SEGMENT.findall(text):
        values[name] = {"selector": selector, "base": base, "limit": limit, "flags": flags}
    for name, base, limit in _TABLE.findall(text):
        values[name] = {"base": base, "limit": limit}
    for number, mantissa, exponent in _FLOAT.findall(text):
        values[f"FPR{number}"] = {"mantissa": mantissa, "exponent": exponent}
    for name, words in _VECTOR.findall(text):
        values[name] = words.replace(" ", "")
    rest = text
    for pattern in (_SEGMENT, _TABLE, _FLOAT, _VECTOR):
        rest = pattern.sub("", rest)
    values.update(_PLAIN.findall(rest))
    return values


def read_truth(monitor: Monitor, directory: Path, modes: str, symbols: dict[str, int]) -> dict[str, Any]:
    """Status, vCPUs, registers, places (see inhost.modes), and the VMCB12 pages of a machine that is stopped.

    ``modes`` is a letter per vCPU and ``symbols`` are the guest's.  ``directory`` has to be writable for QEMU.
    Raises Untimely if a vCPU is not where its mode is.
    """
    text = monitor.human("info registers -a").replace("\r", "")
    parts = _CPU_TITLE.split(text)
    titled = dict(zip(parts[1::2], parts[2::2], strict=True))
    truth = {
        "status": monitor.command("query-status")["status"],
        "cpus": [{"index": cpu["cpu-index"], "props": cpu["props"]} for cpu in monitor.command("query-cpus-fast")],
        "registers": {
            index: {"text": part.strip("\n"), "values": parse_registers(part)} for index, part in titled.items()
        },
    }
    places = {str(index): where(truth, index, letter, symbols) for index, letter in enumerate(modes)}
    pages = {}
    for index, place in places.items():
        if place != L2:
            continue
        address = symbols["vmcb12_pages"] + int(index) * 4096
        dump = directory / f"vmcb12-{index}"
        monitor.command("pmemsave", val=address, size=4096, filename=str(dump))
        pages[index] = {"address": f"{address:016x}", "bytes": dump.read_bytes().hex()}
    return truth | {"places": places, "vmcb12": pages}
