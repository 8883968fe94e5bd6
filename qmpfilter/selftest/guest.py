# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with a case's guest in it, ready to start: an L1 in long mode that runs an L2 of one kind or another."""

from __future__ import annotations

from typing import Final

from qmpfilter.kvm.device import Kvm, Memory, Vcpu, Vm
from qmpfilter.selftest import registers
from qmpfilter.selftest.case import Case
from qmpfilter.selftest.memory import HSAVE, MEMORY, contents

__all__ = ["prepare", "start"]

_VM_HSAVE_PA: Final = 0xC001_0117


def prepare(kvm: Kvm, case: Case) -> tuple[Vm, Memory, Vcpu]:
    """A machine with the case's guest in its memory and the vCPU about to start L1."""
    vm, memory, vcpu = start(kvm)
    for gpa, content in contents(case, registers.vmcb12(case)).items():
        memory.write(gpa, content)
    sregs = vcpu.sregs2()
    registers.fill_sregs(sregs, case)
    vcpu.set_sregs2(sregs)
    vcpu.set_msrs({_VM_HSAVE_PA: HSAVE, registers.MSR_PAT: registers.pat(case)})
    vcpu.set_regs(registers.regs(case))
    vcpu.set_xsave(registers.xsave(case))
    vcpu.set_debug_regs(registers.debug_regs(case))
    return vm, memory, vcpu


def start(kvm: Kvm) -> tuple[Vm, Memory, Vcpu]:
    """A machine with empty memory and a vCPU as after reset."""
    vm = kvm.create_vm()
    try:
        memory = vm.add_memory(0, MEMORY)
        return vm, memory, vm.create_vcpu(0, kvm.supported_cpuid())
    except BaseException:
        vm.close()
        raise
