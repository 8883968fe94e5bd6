# SPDX-License-Identifier: GPL-2.0-or-later
"""Restores guests of selftest with svm2 and without, and tells what came of L2: ``python3 -m inhost.exact NPT``.

With NPT 0, for a host without nested paging, only those that selftest has no random registers for.
Each guest is stopped in L2, and restored in two fresh machines: as a stock QEMU would without svm2, and from the
record alone, with every register of L2 that the vCPU has made another one *before* the nested state is set.
``out/exact.json`` has of each case the fields of VMCB12's save area in which the two, and the record, differ from
what they are at #VMEXIT without any restore, and what else is not the same in the second.
"""

from __future__ import annotations

import fcntl
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from qmpfilter.kvm import uapi
from qmpfilter.kvm.device import Kvm, Vcpu, Vm
from qmpfilter.selftest import guest, qemu
from qmpfilter.selftest.case import Case
from qmpfilter.selftest.cases import cases
from qmpfilter.selftest.memory import IN_L1, VMCB12
from qmpfilter.selftest.run import Stop, differences, reach_stop, take, until
from qmpfilter.svm import annex
from qmpfilter.svm.svm2 import Validity
from qmpfilter.svm.vmcb import SAVE, SAVE_OFFSET, RegisterClass, registers, save_fields
from qmpfilter.wire import cpu

_BLOB_PAGE = 0x80
_ENABLE_CAP = 0x4068_AEA3
_DISABLE_QUIRKS2 = 213
_SHARED_PAT = 1 << 11
_SET_GUEST_DEBUG = 0x4048_AE9B
_USE_HW_BP = 1 << 17 | 1  # and KVM_GUESTDBG_ENABLE
_PDPTRS = "cpu/pdptrs"
# What L1 and L2 share is not L2's, and stays.
_SHARED_MSRS = ("pat", "vm_hsave")


class OwnPat(Kvm):
    """KVM with machines where an L2 with nested paging has a PAT of its own, as Linux 7.2 and later can."""

    def create_vm(self) -> Vm:
        vm = super().create_vm()
        fcntl.ioctl(vm.fileno(), _ENABLE_CAP, struct.pack("<II4Q64x", _DISABLE_QUIRKS2, 0, _SHARED_PAT, 0, 0, 0))
        return vm


def kvm_with_own_pat() -> Kvm:
    """Such a KVM where the kernel can, else KVM as it is."""
    kvm = OwnPat()
    try:
        kvm.create_vm().close()
    except OSError:
        kvm.close()
        return Kvm()
    return kvm


def load_scrambled(vcpu: Vcpu, state: qemu.State, nested: bytes, random: Random) -> None:
    """Everything but the nested state first, with L2's registers at random; then that.

    The kinds of the segments are legal, as KVM refuses others; EFER has SVME, as the nested state demands.
    """
    xsave, xcrs, db, events, mp_state = state.shared
    sregs = vcpu.sregs2()
    for name in qemu.SEGMENTS:
        _scramble_segment(getattr(sregs, name), name, random)
    for table in (sregs.gdt, sregs.idt):
        table.base, table.limit = random.getrandbits(40), random.getrandbits(16)
    sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4 = 0x8000_0031, random.getrandbits(64), 0x5000, 0x20
    sregs.efer, sregs.flags = 0x1D00, 0
    pdptrs = state.subsections.get(_PDPTRS)
    if pdptrs is not None:
        # They are in no VMCB, and KVM takes them for a vCPU with PAE alone.
        sregs.efer, sregs.cs.l, sregs.cs.db, sregs.flags = 0x1000, 0, 1, 1
        sregs.pdptrs[:] = struct.unpack(">4Q", pdptrs)
    vcpu.set_sregs2(sregs)
    values = {name: cpu.BLOCK.get(state.block, name) for name in qemu.GPRS}
    values |= {"rax": random.getrandbits(64), "rsp": random.getrandbits(64), "rip": random.getrandbits(40)}
    vcpu.set_regs(uapi.Regs(**values, rflags=2 | random.getrandbits(1) << 6))
    vcpu.set_xsave(xsave)
    vcpu.set_xcrs(xcrs)
    vcpu.set_msrs(
        {
            index: cpu.BLOCK.get(state.block, name) if name in _SHARED_MSRS else random.getrandbits(31)
            for name, index in qemu.MSRS.items()
        }
    )
    given = uapi.Events.from_buffer_copy(events)
    given.flags = qemu.EVENTS_VALID
    vcpu.set_events(given)
    vcpu.set_mp_state(mp_state)
    debug = uapi.DebugRegs(dr6=0xFFFF_0FF0 | random.getrandbits(4), dr7=0x400 | random.getrandbits(1) << 13)
    debug.db[:] = db
    vcpu.set_debug_regs(debug)
    vcpu.set_nested_state(nested)


def _scramble_segment(segment: uapi.Segment, name: str, random: Random) -> None:
    segment.base, segment.limit, segment.selector = random.getrandbits(32), 0xFFFF_FFFF, random.getrandbits(16) & ~3
    segment.type = {"cs": 11, "tr": 11, "ldt": 2}.get(name, 3)
    segment.s = 0 if name in ("ldt", "tr") else 1
    segment.present, segment.g, segment.l = 1, 1, int(name == "cs")
    segment.db = segment.dpl = segment.unusable = segment.avl = 0


def _debugged(kvm: Kvm) -> dict[str, int]:
    """The record's DR7 and validity, and what it should be, while userspace has a breakpoint of its own."""
    case = Case("64-bit")
    vm, memory, vcpu = guest.prepare(kvm, case)
    with vm, vcpu:
        reach_stop(vcpu, case)
        fcntl.ioctl(vcpu.fileno(), _SET_GUEST_DEBUG, struct.pack("<II8Q", _USE_HW_BP, 0, *([0] * 7), 0x402))
        stop = take(vcpu, memory)
        record = annex.decode(vcpu.nested_state()[_BLOB_PAGE:], VMCB12, run_pending=False, gif=True)
    assert record is not None
    told = cpu.BLOCK.get(stop.state.block, "dr7")
    return {"dr7": SAVE.get(record.vmcb12_save, "dr7"), "validity": int(record.validity), "told": told}


def _restored(kvm: Kvm, before: Stop, load: Any) -> Stop:
    vm, memory, vcpu = guest.start(kvm)
    with vm, vcpu:
        memory.write(0, before.memory)
        load(vcpu)
        until(vcpu, IN_L1)
        return take(vcpu, memory)


def _compared(kvm: Kvm, case: Case) -> dict[str, Any]:
    vm, memory, vcpu = guest.prepare(kvm, case)
    with vm, vcpu:
        reach_stop(vcpu, case)
        before, nested = take(vcpu, memory), vcpu.nested_state()
        until(vcpu, IN_L1)
        after = take(vcpu, memory)
    legacy = _restored(kvm, before, lambda vcpu: qemu.load(vcpu, before.state))
    exact = _restored(kvm, before, lambda vcpu: load_scrambled(vcpu, before.state, nested, Random(case.seed)))
    state = before.state.nested
    record = annex.decode(nested[_BLOB_PAGE:], state.vmcb_pa, run_pending=state.run_pending, gif=state.gif)
    assert record is not None
    # What an event is delivered with goes on before #VMEXIT; and L1's PAT stands for that of an L2 without its own.
    at_exit = [] if case.handled else list(_differing(record.vmcb12_save, 0, after.vmcb12))
    if not record.validity & Validity.G_PAT and "g_pat" in at_exit:
        at_exit.remove("g_pat")
    return {
        "case": case.name,
        "nested paging": case.nested_paging,
        "flags": int(record.flags),
        "validity": int(record.validity),
        "record": at_exit,
        "legacy": list(_differing(legacy.vmcb12, SAVE_OFFSET, after.vmcb12)),
        "svm2": list(_differing(exact.vmcb12, SAVE_OFFSET, after.vmcb12)),
        "else": list(differences(exact, after, frozenset())),
    }


def _differing(ours: bytes, offset: int, theirs: bytes) -> Iterator[str]:
    for kind in RegisterClass:
        for register in registers(kind):
            for name in save_fields(register):
                if SAVE.get(ours, name, offset) != SAVE.get(theirs, name, SAVE_OFFSET):
                    yield name


def main(npt: bool) -> None:
    """The job."""
    kvm = kvm_with_own_pat()
    told: dict[str, Any] = {"own PAT": isinstance(kvm, OwnPat), "cases": []}
    with kvm:
        told["debugged"] = _debugged(kvm)
        for case in cases(nested_paging=npt, vgif=True):
            if case.smi or (case.seed and not npt):
                continue
            try:
                told["cases"].append(_compared(kvm, case))
            except Exception as error:
                error.add_note(case.name)
                raise
    Path("out/exact.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1] != "0")
