# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside of a host, as a program: restores one wrong bit after the other and tells what selftest says of it.

One bit of one register at a time is changed in what the way back from svm2 gives: of L2's in the section, of L1's
in the page. Prints a JSON object, the failures by register.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final
from unittest import mock

from qmpfilter.kvm.device import Kvm
from qmpfilter.selftest import run
from qmpfilter.selftest.case import Case
from qmpfilter.svm.downgrade import Downgrade, to_legacy
from qmpfilter.svm.provenance import SECTION, moves
from qmpfilter.svm.svm2 import Svm2State
from qmpfilter.svm.vmcb import SAVE, SAVE_OFFSET, RegisterClass, registers, save_fields
from qmpfilter.wire import cpu

Change = Callable[[Downgrade], Downgrade]

#: A bit that leaves the register legal, by field; else bit 3.
BITS: Final = {"cr0": 1 << 1, "cr4": 1 << 2, "efer": 1 << 0, "rflags": 1 << 0}
_AVL_FLAG, _AVL_ATTRIB, _LIMIT = 1 << 20, 1 << 8, 1 << 12


def bit(name: str) -> int:
    """Which one to change."""
    if name.endswith("_flags"):
        return _AVL_FLAG
    if name.endswith("_attrib"):
        return _AVL_ATTRIB
    if name.endswith("_limit") and not name.startswith(("gdt", "idt")):
        return _LIMIT
    return BITS.get(name, 1 << 3)


def in_section(name: str) -> Change:
    """Changes L2's."""

    def change(back: Downgrade) -> Downgrade:
        block = bytearray(back.block)
        cpu.BLOCK.put(block, name, cpu.BLOCK.get(block, name) ^ bit(name))
        return replace(back, block=bytes(block))

    return change


def in_page(name: str) -> Change:
    """Changes L1's."""

    def change(back: Downgrade) -> Downgrade:
        assert back.legacy.page is not None
        page = bytearray(back.legacy.page)
        SAVE.put(page, name, SAVE.get(page, name, SAVE_OFFSET) ^ bit(name), SAVE_OFFSET)
        return replace(back, legacy=replace(back.legacy, page=bytes(page)))

    return change


def changes() -> Iterator[tuple[str, Change]]:
    """Every register that a restore takes from the section or from the page. DR7 is not L2's in legacy state."""
    for row in SECTION:
        if row.written and row.register != "dr7":
            for move in moves(row):
                yield f"L2's {move.save}", in_section(move.block)
    # KVM takes CPL 0, and of tables no selector or attributes.
    for register in registers(RegisterClass.VMRUN):
        if register != "cpl":
            for name in save_fields(register):
                if name not in ("gdtr_selector", "gdtr_attrib", "idtr_selector", "idtr_attrib"):
                    yield f"L1's {name}", in_page(name)


def wrongly(change: Change) -> Callable[[Svm2State, bytes, Mapping[str, bytes]], Downgrade]:
    """to_legacy with a mistake."""
    return lambda state, block, subsections: change(to_legacy(state, block, subsections))


def main() -> None:
    """Print what is said of each."""
    said = {}
    with Kvm() as kvm:
        for name, change in changes():
            with mock.patch.object(run, "to_legacy", wrongly(change)):
                said[name] = run.run(kvm, Case(name)).failures
    print(json.dumps(said))


if __name__ == "__main__":
    main()
