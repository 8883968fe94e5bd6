# SPDX-License-Identifier: GPL-2.0-or-later
"""For each rule of the verdict, changes of a good state just across its border and just short of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from qmpfilter.verdict.cpuid import FEATURES
from tests.lab.draft import Draft

__all__ = ["BORDERS", "PLAIN", "TABLES", "borders"]

Change = Callable[[Draft], None]

PLAIN = "plain"
# Tables by name: features taken away, or an address width.
TABLES: dict[str, tuple[tuple[str, ...], int | None]] = {
    PLAIN: ((), None),
    **{f"no-{feature}": ((feature,), None) for feature in FEATURES},
    "no-SHSTK-IBT": (("SHSTK", "IBT"), None),
    **{f"maxphyaddr-{bits}": ((), bits) for bits in (36, 40, 52)},
}


def borders() -> Iterator[Change]:
    """What to change in a draft that is in L2, one at a time."""
    return chain.from_iterable(BORDERS.values())


def _put(field: str, value: int) -> Change:
    return lambda d: d.put(field, value)


def _set(field: str, bits: int) -> Change:
    return lambda d: d.set_bits(field, bits)


def _clear(field: str, bits: int) -> Change:
    return lambda d: d.clear_bits(field, bits)


def _table(name: str) -> Change:
    def change(d: Draft) -> None:
        d.table = name

    return change


def _all(*changes: Change) -> Change:
    def change(d: Draft) -> None:
        for one in changes:
            one(d)

    return change


def _each_bit(field: str, bits: range, *also: Change) -> list[Change]:
    return [_all(_set(field, 1 << bit), *also) for bit in bits]


# CR4 bits and the tables in which they are not legal; EFER bits likewise.
_CR4 = {11: "UMIP", 12: "LA57", 13: "VMX", 16: "FSGSBASE", 17: "PCID", 18: "XSAVE", 20: "SMEP", 21: "SMAP", 22: "PKU",
        23: "SHSTK-IBT", 28: "LAM"}  # fmt: skip
_EFER = {0: None, 8: "LM", 10: "LM", 11: "NX", 12: "SVM", 13: None, 14: "FXSR_OPT", 21: "AUTOIBRS"}

_PE, _NW, _CD, _PG = 1, 1 << 29, 1 << 30, 1 << 31
_PAE, _LME, _LMA, _SVME = 1 << 5, 1 << 8, 1 << 10, 1 << 12
_L, _DB = 1 << 9, 1 << 10
_SEGMENT_L = 1 << 21
_VM = 1 << 17
_LONG = _LME | _LMA


def _cr4(field: str) -> list[Change]:
    rows = [_set(field, 1 << bit) for bit in range(64)]
    for bit, feature in _CR4.items():
        rows += [_all(_table(f"no-{feature}"), _set(field, 1 << bit)),
                 _all(_table(f"no-{feature}"), _clear(field, 1 << bit))]  # fmt: skip
    return rows


def _efer(field: str) -> list[Change]:
    rows = [_set(field, 1 << bit) for bit in range(64) if bit not in (8, 10)]
    for bit, feature in _EFER.items():
        if feature not in (None, "LM"):
            rows += [_all(_table(f"no-{feature}"), _set(field, 1 << bit)),
                     _all(_table(f"no-{feature}"), _clear(field, 1 << bit))]  # fmt: skip
    return rows


def _widths(field: str, size: int = 0) -> list[Change]:
    """Around the ends of several address widths, for something of that size."""
    rows = []
    for bits in (36, 40, 52):
        end = 1 << bits
        for at in (end - size - 4096, end - size, end - 4096, end):
            rows.append(_all(_table(f"maxphyaddr-{bits}"), _put(field, at)))
    return [*rows, _put(field, 1 << 48), _put(field, (1 << 64) - 4096), _put(field, 0x1000), _put(field, 1 << 63)]


_REAL = _all(_put("cpu.cr0", 0x10), _clear("cpu.efer", _LONG), _clear("cpu.cs_flags", _SEGMENT_L))
_PROTECTED = _all(_put("cpu.cr0", 0x11), _clear("cpu.efer", _LONG), _clear("cpu.cs_flags", _SEGMENT_L))
_PAGED = _all(_put("cpu.cr0", 0x80000011), _clear("cpu.efer", _LONG), _clear("cpu.cs_flags", _SEGMENT_L))
_LONG_L2 = _all(_set("cpu.cr0", _PG | _PE), _set("cpu.cr4", _PAE), _set("cpu.efer", _LONG))
_LONG_L1 = _all(_set("l1.cr0", _PG | _PE), _set("l1.cr4", _PAE), _set("l1.efer", _LONG))
_PDPTRS = bytes(32)


def _with_pdptrs(d: Draft) -> None:
    d.subsections["cpu/pdptrs"] = _PDPTRS


#: By the code of the rule, or by what a group of losses has in common.
BORDERS: dict[str, list[Change]] = {
    "pdptrs-without-pae": [_all(state, _with_pdptrs) for state in (
        _PAGED, _all(_PAGED, _set("cpu.cr4", _PAE)), _PROTECTED, _REAL, _LONG_L2)],
    "sregs-cr4-pae": [_all(_LONG_L2, _clear("cpu.cr4", _PAE)), _LONG_L2, _all(_PAGED, _clear("cpu.cr4", _PAE))],
    "sregs-efer-lma": [_all(_LONG_L2, _clear("cpu.efer", _LMA)), _LONG_L2],
    "sregs-cr3-long-mode": [_all(_LONG_L2, change) for change in _widths("cpu.cr3")]
                        + [_all(_LONG_L2, _put("cpu.cr3", value)) for value in (1 << 61 | 0x1000, 3 << 61)],
    "sregs-efer-lma-without-lme": [_all(state, _set("cpu.efer", bits)) for state in (_REAL, _PROTECTED, _PAGED)
                                for bits in (0, _LME, _LMA)],
    "sregs-cs-long": [_all(state, change) for state in (_REAL, _PROTECTED, _PAGED, _LONG_L2) for change in (
        _set("cpu.cs_flags", _SEGMENT_L), _all(_set("cpu.cs_flags", _SEGMENT_L), _set("cpu.rflags", _VM)),
        _clear("cpu.cs_flags", _SEGMENT_L))],
    "sregs-cr4": _cr4("cpu.cr4"),
    "sregs-cr0-high": _each_bit("cpu.cr0", range(32, 64)) + _each_bit("cpu.cr0", range(29)),
    "sregs-cr0-nw": [_all(_set("cpu.cr0", _NW), _clear("cpu.cr0", _CD)), _set("cpu.cr0", _NW | _CD),
                     _set("cpu.cr0", _CD)],
    "sregs-cr0-pg": [_all(_PAGED, _clear("cpu.cr0", _PE)), _PAGED, _PROTECTED, _REAL],
    "sregs-efer": _efer("cpu.efer"),
    "run-pending-without-guest-mode": [
        _all(_put("nested_state.flags", flags), _clear("cpu.hflags", 1 << 21)) for flags in (0, 2, 0x100, 0x102)],
    "format-vmx": [_put("nested_state.format", value) for value in (0, 1)],
    "flags": [_put("nested_state.flags", 1 | 1 << bit) for bit in range(16)],
    "l2-efer-svme": [_clear("cpu.efer", _SVME), _set("cpu.efer", _SVME)],
    "gif-without-svme": [_all(_clear("cpu.hflags", 1 << 21), gif("cpu.hflags2", 1), svme("cpu.efer", _SVME))
                         for gif in (_set, _clear) for svme in (_set, _clear)],
    "vmcb-pa": _widths("nested_state.vmcb_pa")
               + [_put("nested_state.vmcb_pa", value) for value in (1, 0xFFF, 0x1FFF, 0)],
    "size-page": [_put("nested_state.size", value) for value in (128, 0x107F, 0x1080)],
    "vmrun-intercept": [_clear("control.intercept_word4", 1), _put("control.intercept_word4", 1)],
    "asid": [_put("control.asid", value) for value in (0, 1, 0xFFFFFFFF)],
    "npt": [change("control.misc_ctl", 1) for change in (_set, _clear)]
           + [_all(_table("no-NPT"), _set("control.misc_ctl", 1))],
    "nested-cr3": [_all(_set("control.misc_ctl", 1), change) for change in _widths("control.nested_cr3")]
                  + [_all(_clear("control.misc_ctl", 1), _put("control.nested_cr3", 1 << 63)),
                     _all(_table("no-NPT"), _set("control.misc_ctl", 1), _put("control.nested_cr3", 1 << 63))],
    "msrpm": [*_widths("control.msrpm_base_pa", 0x2000), _put("control.msrpm_base_pa", 0x1FFF)],
    "iopm": [*_widths("control.iopm_base_pa", 0x3000), _put("control.iopm_base_pa", 0x1FFF)],
    "v-nmi": [_all(_set("control.int_ctl", 1 << 26), nmi) for nmi in (
        _set("control.intercept_word3", 2), _clear("control.intercept_word3", 2))]
             + [_all(_clear("control.int_ctl", 1 << 26), _clear("control.intercept_word3", 2))],
    "event-inj-type": [_put("control.event_inj", valid << 31 | kind << 8 | 14)
                       for valid in (0, 1) for kind in range(8)],
    "event-inj-vector": [_put("control.event_inj", 1 << 31 | 3 << 8 | vector) for vector in range(36)]
                        + [_put("control.event_inj", 1 << 31 | kind << 8 | 2) for kind in (0, 2, 4)]
                        + [_all(_table("no-SHSTK"), _put("control.event_inj", 1 << 31 | 3 << 8 | 21))],
    "l1-cr0-pg": [*(_clear("l1.cr0", bits) for bits in (_PG, _PE, _PG | _PE)), _set("l1.cr0", _PG | _PE)],
    "l1-rflags-vm": [_set("l1.rflags", _VM), _clear("l1.rflags", _VM), _set("l1.rflags", 0xFFFFFFFFFFFDFFFF)],
    "l1-efer-lma": [_all(_set("l1.efer", _LMA), _clear("l1.efer", _LME)), _clear("l1.efer", _LONG),
                    _all(_LONG_L1, _clear("l1.efer", _LMA)), _LONG_L1],
    "l1-efer-svme": [_clear("l1.efer", _SVME), _set("l1.efer", _SVME)],
    "l1-cr0-nw": [_all(_set("l1.cr0", _NW), _clear("l1.cr0", _CD)), _set("l1.cr0", _NW | _CD), _set("l1.cr0", _CD)],
    "l1-cr0-high": _each_bit("l1.cr0", range(32, 64)) + _each_bit("l1.cr0", range(29)),
    "l1-dr6-high": [_put("l1.dr6", value) for value in (1 << 32, 1 << 63, 0xFFFFFFFF, 0)],
    "l1-dr7-high": [_put("l1.dr7", value) for value in (1 << 32, 1 << 63, 0xFFFFFFFF, 0)],
    "l1-cr4-pae": [_all(_LONG_L1, _clear("l1.cr4", _PAE)), _LONG_L1,
                   _all(_clear("l1.efer", _LONG), _clear("l1.cr4", _PAE))],
    "l1-cr3": [_all(_LONG_L1, change) for change in _widths("l1.cr3")]
              + [_all(_LONG_L1, _put("l1.cr3", 3 << 61)), _all(_clear("l1.efer", _LONG), _put("l1.cr3", 1 << 63))],
    "l1-cs": [_all(mode, _clear("l1.cs_attrib", _L | _DB), _set("l1.cs_attrib", bits))
              for mode in (_LONG_L1, _clear("l1.efer", _LONG)) for bits in (0, _L, _DB, _L | _DB)],
    "l1-cr4": _cr4("l1.cr4"),
    "l1-efer": _efer("l1.efer"),
    "l2-cr3": [_all(state, change) for state in (_REAL, _PROTECTED, _PAGED) for change in _widths("cpu.cr3")],
    # Losses that KVM_GET_NESTED_STATE shows afterwards.
    "intercepts": [_all(_table(table), _set(f"control.intercept_word{word}", 1 << bit))
                   for table in (PLAIN, "no-XSAVE", "no-RDTSCP", "no-SKINIT", "no-RDPRU", "no-INVPCID")
                   for word, bit in ((4, 13), (4, 7), (4, 6), (4, 14), (5, 2))],
    "reserved": [_put("control.tlb_ctl", 0xFF), _put("control.tlb_ctl", 7), _put("control.int_vector", 0x1FF),
                 _put("control.int_vector", 0xFF), _put("control.int_state", 3), _put("control.int_state", 1),
                 _put("control.event_inj", 0x7FFFF000), _put("control.event_inj", 0x80000BFF & ~0x700),
                 _set("control.misc_ctl", 8), _set("control.misc_ctl", 6)],
    "l1-lbr": [_put(f"l1.{name}", 0x41) for name in ("dbgctl", "br_from", "br_to", "last_excp_from", "last_excp_to")],
    "l1-cet": [_put(f"l1.{name}", 0x41000) for name in ("s_cet", "ssp", "isst_addr")],
    "run-pending": [_set("nested_state.flags", 2), _all(_set("nested_state.flags", 2), _clear("cpu.hflags2", 1))],
}  # fmt: skip
