# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers to a section and back, with a vCPU that only remembers."""

from __future__ import annotations

import ctypes
from random import Random
from typing import Any

import pytest

from qmpfilter.kvm import uapi
from qmpfilter.selftest import qemu
from qmpfilter.svm.annex import RECORD
from qmpfilter.svm.legacy import SIZE_L1, SIZE_L2
from qmpfilter.wire import cpu


class Remembering:
    """A vCPU of which every structure was filled from one seed."""

    def __init__(self, seed: int, nested: bytes) -> None:
        random = Random(seed)
        self.kept: dict[str, Any] = {"nested_state": nested, "mp_state": 0, "xsave": random.randbytes(4096)}
        for name, kind in (("regs", uapi.Regs), ("sregs2", uapi.Sregs2), ("debug_regs", uapi.DebugRegs),
                           ("events", uapi.Events), ("xcrs", uapi.Xcrs)):  # fmt: skip
            self.kept[name] = kind.from_buffer_copy(random.randbytes(ctypes.sizeof(kind)))
        for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"):
            segment = getattr(self.kept["sregs2"], name)
            segment.type, segment.dpl = segment.type & 15, segment.dpl & 3
            for bit in ("present", "db", "s", "l", "g", "avl"):
                setattr(segment, bit, getattr(segment, bit) & 1)
            segment.unusable = not segment.present
        self.kept["sregs2"].flags = 1
        self.kept["events"].flags = 0xB
        self.kept["events"].exception_nr &= 31
        self.kept["events"].smi_smm &= 1
        self._random = random
        self._msrs: dict[int, int] = {}

    def msrs(self, indices: list[int]) -> dict[int, int]:
        for index in indices:
            self._msrs.setdefault(index, self._random.getrandbits(32))
        return self._msrs

    def set_msrs(self, values: dict[int, int]) -> None:
        self._msrs.update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("set_"):
            return lambda value: self.kept.__setitem__(name.removeprefix("set_"), value)
        return lambda: self.kept[name]


def blob(flags: int, size: int) -> bytes:
    header = flags.to_bytes(2, "little") + (1).to_bytes(2, "little") + size.to_bytes(4, "little")
    pa = (0x4000).to_bytes(8, "little") if flags & 1 else bytes(8)
    return (header + pa).ljust(SIZE_L1, b"\0") + Random(flags).randbytes(size - SIZE_L1)


def legacy_blob(flags: int) -> bytes:
    """As a stock kernel gives it."""
    return blob(flags, SIZE_L2)[: -RECORD.size] + bytes(RECORD.size) if flags & 1 else blob(flags, SIZE_L1)


@pytest.mark.parametrize("flags", [0x000, 0x100, 0x101, 0x103, 0x001])
def test_what_was_saved_is_loaded(flags: int) -> None:
    nested = legacy_blob(flags)
    source: Any = Remembering(1, nested)
    saved = qemu.save(source)
    assert saved.nested.flags == flags
    assert bool(cpu.BLOCK.get(saved.block, "hflags") & cpu.HF_GUEST) == bool(flags & 1)
    destination: Any = Remembering(2, b"")
    qemu.load(destination, saved)
    again = qemu.save(destination)
    assert (again.nested, again.block, again.subsections) == (saved.nested, saved.block, saved.subsections)
    assert destination.kept["nested_state"] == nested
    assert bytes(destination.kept["regs"]) == bytes(source.kept["regs"])
    assert again.shared[0] == saved.shared[0]
    assert again.shared[2] == saved.shared[2]


def test_of_a_kernel_that_emits_svm2_the_legacy_state_is_tested() -> None:
    given = legacy_blob(0x101)[: -RECORD.size] + Random(0).randbytes(RECORD.size)
    source: Any = Remembering(1, given)
    assert qemu.save(source).nested.page == legacy_blob(0x101)[SIZE_L1:]
