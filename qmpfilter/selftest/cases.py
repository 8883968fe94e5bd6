# SPDX-License-Identifier: GPL-2.0-or-later
"""What is tested: every kind of L2 and of stop, and random legal registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qmpfilter.selftest import code
from qmpfilter.selftest.guest import Case, Mode

__all__ = ["RANDOM_CASES", "cases"]

RANDOM_CASES: Final = 40

_V_GIF, _V_INTR_MASKING, _V_GIF_ENABLE = 1 << 9, 1 << 24, 1 << 25
_WRITES_TO_DR7: Final = 1 << 16 + 7


def cases(*, nested_paging: bool, vgif: bool) -> Iterator[Case]:
    """Every case, in a fixed order.

    :param nested_paging: the host offers nested paging to L1
    :param vgif: the host offers a virtual GIF to L1
    """
    pagings = (False, True) if nested_paging else (False,)
    for paging in pagings:
        suffix = ", nested paging" if paging else ""
        for mode in Mode:
            if mode is not Mode.REAL or paging:
                yield Case(f"{mode.value}{suffix}", mode, paging)
        yield Case(f"V_INTR_MASKING{suffix}", nested_paging=paging, int_ctl=_V_INTR_MASKING)
        yield Case(f"L1's GIF clear{suffix}", nested_paging=paging, before=code.CLGI)
        if vgif:
            control = _V_GIF | _V_GIF_ENABLE
            yield Case(f"vGIF set{suffix}", nested_paging=paging, int_ctl=control)
            yield Case(f"vGIF cleared by L2{suffix}", nested_paging=paging, int_ctl=control, before=code.CLGI)
        yield Case(f"DR7 intercepted{suffix}", nested_paging=paging, intercept_dr=_WRITES_TO_DR7)
        yield Case(f"run pending{suffix}", nested_paging=paging, loop=True)
        yield Case(f"run pending, event injected by L1{suffix}", nested_paging=paging, loop=True, inject=True)
        yield Case(f"NMI pending{suffix}", nested_paging=paging, events={"nmi_pending": 1, "flags": 1})
        yield Case(f"NMI injected{suffix}", nested_paging=paging, events={"nmi_injected": 1})
        yield Case(
            f"exception injected{suffix}",
            nested_paging=paging,
            events={"exception_injected": 1, "exception_nr": 6},
        )
        yield Case(
            f"interrupt injected{suffix}",
            nested_paging=paging,
            events={"interrupt_injected": 1, "interrupt_nr": 0x40},
        )
        yield Case(f"in SMM{suffix}", nested_paging=paging, smi=True)
    for seed in range(1, RANDOM_CASES + 1):
        mode = tuple(Mode)[seed % len(Mode)]
        paging = nested_paging and (mode is Mode.REAL or seed % 2 == 0)
        if mode is not Mode.REAL or paging:
            yield Case(f"random registers {seed}, {mode.value}", mode, paging, seed)
