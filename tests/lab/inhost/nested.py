# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts nested states to this host's KVM, the way QEMU would: ``python3 -m inhost.nested``.

The job brings the package as ``qmpfilter.zip``; ``tables.json``, CPUID tables; and ``states``, records of
:data:`STATE` in zlib's format. ``out/answers`` has as many records of :data:`ANSWER` likewise.
"""

from __future__ import annotations

import ctypes
import json
import zlib
from pathlib import Path
from struct import Struct

from qmpfilter.kvm.device import CpuidRow, Kvm, KvmError, Vcpu
from qmpfilter.kvm.uapi import Cap, Sregs2
from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L1, SIZE_L2, StateFlags

NESTED_SIZE = SIZE_L2
SREGS_SIZE = ctypes.sizeof(Sregs2)
#: Which table, what KVM_SET_SREGS2 gets but for the APIC's base, what KVM_SET_NESTED_STATE gets.
STATE = Struct(f"<H{SREGS_SIZE}s{NESTED_SIZE}s")
#: Where it ended (0 accepted, 1 at the registers, 2 at the nested state), errno, KVM_GET_NESTED_STATE afterwards.
ANSWER = Struct(f"<BH{NESTED_SIZE}s")
ACCEPTED, AT_SREGS, AT_NESTED_STATE = range(3)
# struct kvm_nested_state while L1 runs.
_OUTSIDE_L2 = Struct("<HHI").pack(StateFlags.GIF_SET, FORMAT_SVM, SIZE_L1).ljust(SIZE_L1, b"\0")


def put(tables: list[list[CpuidRow]], states: bytes) -> bytes:
    """The answers, in the order of the states. A vCPU never runs, so it can be used again and again."""
    answers = bytearray()
    with Kvm() as kvm, kvm.create_vm() as vm:
        nests = kvm.check_extension(Cap.NESTED_STATE) > 0
        vcpus = [vm.create_vcpu(index, table) for index, table in enumerate(tables)]
        try:
            bases = [vcpu.sregs2().apic_base for vcpu in vcpus]
            for table, sregs, nested in STATE.iter_unpack(states):
                answers += ANSWER.pack(*_answer(vcpus[table], bases[table], sregs, nested))
                if nests:
                    # A refusal may come after L2 was entered, and registers put then would be L2's.
                    vcpus[table].set_nested_state(_OUTSIDE_L2)
        finally:
            for vcpu in vcpus:
                vcpu.close()
    return bytes(answers)


def _answer(vcpu: Vcpu, apic_base: int, sregs: bytes, nested: bytes) -> tuple[int, int, bytes]:
    given = Sregs2.from_buffer_copy(sregs)
    given.apic_base = apic_base
    try:
        vcpu.set_sregs2(given)
    except KvmError as error:
        return AT_SREGS, error.errno, b""
    try:
        vcpu.set_nested_state(nested)
        return ACCEPTED, 0, vcpu.nested_state()
    except KvmError as error:
        return AT_NESTED_STATE, error.errno, b""


def main() -> None:
    """The job."""
    tables = [[CpuidRow(**row) for row in table] for table in json.loads(Path("tables.json").read_text())]
    answers = put(tables, zlib.decompress(Path("states").read_bytes()))
    Path("out/answers").write_bytes(zlib.compress(answers, 1))


if __name__ == "__main__":
    main()
