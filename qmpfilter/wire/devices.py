# SPDX-License-Identifier: GPL-2.0-or-later
"""Device sections whose layout is known by heart, so that vCPUs can be told while the stream flows.

They are the vCPUs and what stands between and before them in the streams of x86 machines (QEMU
10.2.2 include/migration/vmstate.h:157-170 gives the order). Everything else is delimited by vmdesc.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from construct import Int8ub, Int32sb

from qmpfilter.layout import Field, Layout
from qmpfilter.wire import cpu
from qmpfilter.wire.vmsd import Subsection, Vmsd

__all__ = ["KNOWN", "known"]


def _one_field(name: str, source: str, field: Field, *more: Field) -> dict[str, Subsection]:
    return {name: Subsection(Layout(name, source, [field, *more]))}


_CPU_COMMON: Final = Vmsd(
    "cpu_common",
    1,
    8,
    _one_field("cpu_common/exception_index", "hw/core/cpu-system.c:205-220", Field(0, "exception_index", Int32sb))
    | _one_field("cpu_common/crash_occurred", "hw/core/cpu-system.c:228-238", Field(0, "crash_occurred", Int8ub)),
)
_APIC: Final = Vmsd(
    "apic",
    3,
    181,
    _one_field(
        "apic_sipi",
        "hw/intc/apic_common.c, vmstate_apic_common_sipi",
        Field(0, "sipi_vector", Int32sb),
        Field(4, "wait_for_sipi", Int32sb),
    ),
)

KNOWN: Final[Mapping[tuple[str, int], Vmsd]] = {
    (vmsd.idstr, vmsd.version): vmsd
    for vmsd in (
        Vmsd(cpu.IDSTR, cpu.VERSION, cpu.BLOCK.size, cpu.SUBSECTIONS, binding=True),
        _CPU_COMMON,  # hw/core/cpu-system.c:259-275
        _APIC,  # hw/intc/apic_common.c, vmstate_apic_common
        Vmsd("timer", 2, 24),  # system/cpu-timers.c, vmstate_timers without icount
        Vmsd("kvm-tpr-opt", 1, 144),  # hw/i386/vapic.c, vmstate_vapic
    )
}


def known(idstr: str, version: int) -> Vmsd | None:
    """The layout of a section, if it is known for that version."""
    return KNOWN.get((idstr, version))
