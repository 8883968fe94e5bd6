# SPDX-License-Identifier: GPL-2.0-or-later
"""What is tested: every kind of L2 and of stop, and random legal registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qmpfilter.selftest import code
from qmpfilter.selftest.case import Case, Mode
from qmpfilter.svm.vmcb import IntCtl

__all__ = ["RANDOM_CASES", "cases"]

RANDOM_CASES: Final = 45

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
            yield _plain(f"{mode.value}{suffix}", mode, paging)
        yield Case(f"V_INTR_MASKING{suffix}", nested_paging=paging, int_ctl=IntCtl.V_INTR_MASKING)
        yield Case(f"L1's GIF clear{suffix}", nested_paging=paging, before=code.CLGI)
        if vgif:
            control = IntCtl.V_GIF | IntCtl.V_GIF_ENABLE
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
    modes = tuple(Mode)
    for seed in range(1, RANDOM_CASES + 1):
        mode = modes[seed % len(modes)]
        # Each mode has both pagings, in turn.
        paging = nested_paging and bool(seed // len(modes) % 2)
        suffix = ", nested paging" if paging else ""
        yield _plain(f"random registers {seed}, {mode.value}{suffix}", mode, paging, seed)


def _plain(name: str, mode: Mode, nested_paging: bool, seed: int = 0) -> Case:
    # In virtual 8086 mode an OUT takes a TSS with a map, and emulated SVM refuses a busy TSS: stop it elsewhere.
    # Not so with PAE: emulated SVM marks the pointers accessed, and without nested paging KVM refuses them at the
    # next VMRUN.
    return Case(name, mode, nested_paging, seed, loop=mode is Mode.V8086)
