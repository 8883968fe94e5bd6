# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams of made-up vCPUs with believable nested state, to convert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qmpfilter.svm import annex, native
from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L2, LegacyState
from qmpfilter.svm.svm2 import Svm2State
from qmpfilter.wire import cpu
from qmpfilter.wire.framing import BE64
from tests.helpers.build import UNTIL_TAIL, Device, Field, Vmsd, array, field, opaque, struct_field, tail
from tests.svm.states import Case

__all__ = ["annexed", "good", "legacy", "natively", "stream", "vcpu"]

_FIRST_ID, _LAST_ID = 3, 9000


def legacy(state: LegacyState) -> Vmsd:
    """``cpu/nested_state`` as QEMU sends it, with its entry as QEMU describes it."""
    header = cpu.NESTED_STATE.layout.build({"flags": state.flags, "format": state.format, "size": state.size})
    if state.page is None:
        return _nested(header)
    pa = field("hdr.svm.vmcb_pa", BE64.pack(state.vmcb_pa), "uint64")
    return _nested(header, Vmsd(cpu.NESTED_STATE_SVM.name, (pa, array("data.svm[0].vmcb12", state.page, 4096))))


def annexed(state: Svm2State) -> Vmsd:
    """The same with a record."""
    return legacy(LegacyState(state.state_flags, FORMAT_SVM, SIZE_L2, state.vmcb_pa, annex.encode(state)))


def natively(state: Svm2State) -> Vmsd:
    """Native nested state."""
    header, child = native.encode_subsections(state)
    return _nested(header, Vmsd(cpu.NESTED_STATE_SVM2.name, (field("all", child),)))


def _nested(header: bytes, *children: Vmsd) -> Vmsd:
    spans = ("flags", 0, 2, "uint16"), ("format", 2, 4, "uint16"), ("size", 4, 8, "uint32")
    fields = tuple(field(name, header[start:end], kind) for name, start, end, kind in spans)
    inner = Vmsd("cpu/kvm_nested_state", fields, children)
    return Vmsd(cpu.NESTED_STATE.name, (struct_field("env.nested_state", inner),))


def vcpu(block: bytes, *subsections: Vmsd, index: int = 0, others: Mapping[str, bytes] | None = None) -> Device:
    """A `cpu` section with these subsections, and with others whose payloads are given."""
    plain = [Vmsd(name, _one(payload)) for name, payload in (others or {}).items() if name != "cpu/cet_shstk"]
    children = [Vmsd(name, _one(payload)) for name, payload in (others or {}).items() if name == "cpu/cet_shstk"]
    told = [
        Vmsd(sub.name, sub.fields, tuple(children)) if sub.name == "cpu/cet" else sub
        for sub in (*plain, *subsections)
    ]
    vmsd = Vmsd("cpu", (array("env.regs", block, len(block)),), tuple(told), cpu.VERSION)
    return Device(_FIRST_ID + index, cpu.IDSTR, vmsd, index, cpu.VERSION)


def _one(payload: bytes) -> tuple[Field]:
    return (field("all", payload),)


def good(case: Case | None = None, *more: Vmsd, index: int = 0) -> Device:
    """A vCPU with a legacy state, by default one in L2 that is good."""
    case = case or Case()
    return vcpu(case.block, legacy(case.state), *more, index=index)


def stream(*devices: Device, described: Sequence[Device] | None = None) -> bytes:
    """A precopy stream of these vCPUs, with a device behind them."""
    last = opaque(_LAST_ID, "globalstate", b"running")
    return UNTIL_TAIL + tail(*devices, last, described=None if described is None else (*described, last))
