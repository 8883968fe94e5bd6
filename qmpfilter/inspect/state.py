# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration did to one vCPU, as groups of named values: before, and what is another after.

Registers in which a guest works on its data are left out (general, FPU and vector registers, instruction bytes), so
that a report can be shown around.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from qmpfilter.inspect.as_json import vcpu_as_json
from qmpfilter.inspect.vcpu import decode_vcpu
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DeviceSection

__all__ = ["Groups", "differing", "state_of"]

Groups = dict[str, dict[str, Any]]
"""Values by the names of their group and their own."""

_GENERAL: Final = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
_DATA: Final = frozenset({
    *_GENERAL, "fpregs", "xmm", "ymmh", "insn_bytes", "hv_reserved",
    "cpu/avx512", "cpu/apx", "cpu/fpop_ip_dp", "cpu/intel_amx_xtile", "cpu/mpx", "cpu/arch_lbr", "cpu/intel_pt",
})  # fmt: skip
_PAGES: Final = ("vmcb12_control", "l1_save")


def state_of(section: DeviceSection) -> Groups:
    """Of a `cpu` section of version 12."""
    told = vcpu_as_json(decode_vcpu(section))
    nested = told["nested_state"] or {}
    svm2 = nested.pop("svm2", None) or {}
    groups = {"registers": told["registers"], "segments": told["segments"], "subsections": _subsections(told)}
    pages = {name: nested.pop(name) for name in _PAGES if name in nested}
    record = {name: svm2.pop(name) for name in ("l1_visible", "vmcb12_save") if name in svm2}
    groups |= {"nested state": nested, **pages, "svm2": svm2}
    groups |= {f"svm2 {name}": values for name, values in record.items()}
    return {name.replace("_", " "): dict(_flat(values)) for name, values in groups.items() if values}


def differing(before: Groups, after: Groups) -> Groups:
    """What of `after` is not in `before`, or another value there; None for what is there no more."""
    found: Groups = {}
    for group in before | after:
        old, new = before.get(group, {}), after.get(group, {})
        alike = {name for name in old.keys() & new.keys() if old[name] == new[name]}
        changed = {name: new.get(name) for name in old | new if name not in alike}
        if changed:
            found[group] = changed
    return found


def _subsections(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        sub["name"]: sub["fields"] or f"{sub['size']} bytes"
        for sub in told["subsections"]
        if sub["name"] != cpu.NESTED_STATE.name
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if name in _DATA:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value
        elif all(isinstance(one, str) for one in value) and not any(one.startswith("0x") for one in value):
            yield f"{prefix}{name}", " ".join(value)
