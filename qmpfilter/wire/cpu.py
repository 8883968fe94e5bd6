# SPDX-License-Identifier: GPL-2.0-or-later
"""The x86-64 `cpu` section: its fixed field block and its 50 known subsections.

Source: QEMU 10.2.2 target/i386/machine.c, `vmstate_x86_cpu` (lines 1671-1821); the list of fixed
fields has not changed from version 12 of the section to QEMU 11.1. All integers are big-endian.
Under KVM and while the vCPU is in L2, every register here is L2's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from construct import (
    Array,
    Bytes,
    Construct,
    Int8ub,
    Int16ub,
    Int32sb,
    Int32ub,
    Int64sb,
    Int64ub,
    Struct,
)

from qmpfilter.layout import Field, Layout
from qmpfilter.wire.vmsd import Subsection

__all__ = [
    "BLOCK",
    "GENERAL_REGISTERS",
    "HF2_GIF",
    "HF_GUEST",
    "HF_SMM",
    "IDSTR",
    "NESTED_STATE",
    "NESTED_STATE_SVM",
    "NESTED_STATE_SVM2",
    "NESTED_STATE_VMX",
    "SEGMENTS",
    "SUBSECTIONS",
    "VERSION",
    "VMCB_PAGE_SIZE",
]

IDSTR: Final = "cpu"
VERSION: Final = 12

# target/i386/cpu.h (QEMU 10.2.2): HF_SMM_SHIFT 19, HF_GUEST_SHIFT 21; HF2_GIF_SHIFT 0.
HF_SMM: Final = 1 << 19
HF_GUEST: Final = 1 << 21
HF2_GIF: Final = 1 << 0

# linux-headers/asm-x86/kvm.h: KVM_STATE_NESTED_SVM_VMCB_SIZE.
VMCB_PAGE_SIZE: Final = 0x1000

# env.regs[] order (target/i386/cpu.h, R_EAX ...) and env.segs[] order (R_ES ...).
GENERAL_REGISTERS: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr", "gdt", "idt")

_FLOATX80 = Struct("mantissa" / Int64ub, "exponent" / Int16ub)
_XMM_HALF = Struct("low" / Int64ub, "high" / Int64ub)
_MTRR_VAR = Struct("base" / Int64ub, "mask" / Int64ub)


def _block_fields() -> Iterator[Field]:
    for number, name in enumerate(GENERAL_REGISTERS):
        yield Field(number * 8, name, Int64ub)
    yield Field(128, "rip", Int64ub)
    yield Field(136, "rflags", Int64ub)
    yield Field(144, "hflags", Int32ub, "bit 19: in SMM; bit 21: the vCPU is in L2")
    yield Field(148, "fcw", Int16ub, "env.fpuc")
    yield Field(150, "fsw", Int16ub, "env.fpus_vmstate, TOP in bits 11-13")
    yield Field(152, "ftw", Int16ub, "env.fptag_vmstate, abridged: 1 = valid")
    yield Field(154, "fpregs_format", Int16ub, "always 0")
    yield Field(156, "fpregs", Array(8, _FLOATX80))
    for number, name in enumerate(SEGMENTS):
        at = 236 + number * 20
        yield Field(at, f"{name}_selector", Int32ub)
        yield Field(at + 4, f"{name}_base", Int64ub)
        yield Field(at + 12, f"{name}_limit", Int32ub)
        yield Field(at + 16, f"{name}_flags", Int32ub, "QEMU's SegmentCache.flags, a descriptor's second word")
    yield Field(436, "sysenter_cs", Int32ub)
    yield Field(440, "sysenter_esp", Int64ub)
    yield Field(448, "sysenter_eip", Int64ub)
    yield Field(456, "cr0", Int64ub)
    yield Field(464, "cr2", Int64ub)
    yield Field(472, "cr3", Int64ub)
    yield Field(480, "cr4", Int64ub)
    for number in range(8):
        yield Field(488 + number * 8, f"dr{number}", Int64ub)
    yield Field(552, "a20_mask", Int32sb)
    yield Field(556, "mxcsr", Int32ub)
    yield Field(560, "xmm", Array(16, _XMM_HALF), "bits 0-127 of each vector register")
    yield Field(816, "efer", Int64ub)
    yield Field(824, "star", Int64ub)
    yield Field(832, "lstar", Int64ub)
    yield Field(840, "cstar", Int64ub)
    yield Field(848, "fmask", Int64ub)
    yield Field(856, "kernelgsbase", Int64ub)
    yield Field(864, "smbase", Int32ub)
    yield Field(868, "pat", Int64ub, "IA32_PAT")
    yield Field(876, "hflags2", Int32ub, "bit 0: GIF of L1")
    yield Field(880, "vm_hsave", Int64ub, "MSR_VM_HSAVE_PA")
    yield Field(888, "vm_vmcb", Int64ub, "TCG's own SVM emulation only, like the rows down to v_tpr")
    yield Field(896, "tsc_offset", Int64ub)
    yield Field(904, "intercept", Int64ub)
    yield Field(912, "intercept_cr_read", Int16ub)
    yield Field(914, "intercept_cr_write", Int16ub)
    yield Field(916, "intercept_dr_read", Int16ub)
    yield Field(918, "intercept_dr_write", Int16ub)
    yield Field(920, "intercept_exceptions", Int32ub)
    yield Field(924, "v_tpr", Int8ub)
    yield Field(925, "mtrr_fixed", Array(11, Int64ub))
    yield Field(1013, "mtrr_deftype", Int64ub)
    yield Field(1021, "mtrr_var", Array(8, _MTRR_VAR))
    yield Field(1149, "interrupt_injected", Int32sb, "vector, -1 none")
    yield Field(1153, "mp_state", Int32ub, "KVM_MP_STATE_*: 0 runnable, 1 uninitialized, 3 halted")
    yield Field(1157, "tsc", Int64ub)
    yield Field(1165, "exception_nr", Int32sb, "vector, -1 none")
    yield Field(1169, "soft_interrupt", Int8ub)
    yield Field(1170, "nmi_injected", Int8ub)
    yield Field(1171, "nmi_pending", Int8ub)
    yield Field(1172, "has_error_code", Int8ub)
    yield Field(1173, "sipi_vector", Int32ub)
    yield Field(1177, "mcg_cap", Int64ub)
    yield Field(1185, "mcg_status", Int64ub)
    yield Field(1193, "mcg_ctl", Int64ub)
    yield Field(1201, "mce_banks", Array(40, Int64ub))
    yield Field(1521, "tsc_aux", Int64ub)
    yield Field(1529, "system_time_msr", Int64ub)
    yield Field(1537, "wall_clock_msr", Int64ub)
    yield Field(1545, "xcr0", Int64ub, "since version 12 (2010), like the rest")
    yield Field(1553, "xstate_bv", Int64ub)
    yield Field(1561, "ymmh", Array(16, _XMM_HALF), "bits 128-255 of each vector register")


BLOCK: Final = Layout(
    "cpu", "QEMU 10.2.2 target/i386/machine.c:1677-1764, section version 12", list(_block_fields()), size=1817
)

_SINCE_10_0 = "QEMU 10.0"
_SINCE_11_1 = "QEMU 11.1; sizes from the posted series, no stream with it was seen"


_Row: TypeAlias = "tuple[str, Construct[Any, Any]] | tuple[str, Construct[Any, Any], str]"


def _sub(name: str, *fields: _Row, source: str = "QEMU 7.2 or older",
         children: tuple[Subsection, ...] = ()) -> Subsection:  # fmt: skip
    """A subsection from its fields' names, types and what is to be said of them, laid end to end."""
    rows: list[Field] = []
    at = 0
    for field_name, type_, *doc in fields:
        rows.append(Field(at, field_name, type_, *doc))
        at += rows[-1].size
    return Subsection(Layout(name, source, rows), {child.name: child for child in children})


def _msr(name: str, field_name: str | None = None, source: str = "QEMU 7.2 or older") -> Subsection:
    return _sub(f"cpu/{name}", (field_name or name, Int64ub), source=source)


# machine.c:1024-1247 (QEMU 10.2.2). Only these bytes of struct kvm_nested_state travel.
NESTED_STATE_SVM: Final = _sub(
    "cpu/kvm_nested_state/svm", ("vmcb_pa", Int64ub), ("vmcb12", Bytes(VMCB_PAGE_SIZE)), source="QEMU 5.1"
)
# Areas of a VMCB, little-endian, are opaque here; zeros fill the pages that hold them.
NESTED_STATE_SVM2: Final = _sub(
    "cpu/kvm_nested_state/svm2",
    ("vmcb_pa", Int64ub, "L1 GPA of VMCB12"),
    ("gpat", Int64ub, "L2's PAT where it has its own, else 0"),
    ("validity", Int64ub),
    ("svm2_flags", Int32ub),
    ("producer", Int16ub, "1 qmpfilter, 2 Linux kvm_amd"),
    ("producer_version", Int16ub),
    ("cr0", Int64ub, "L1's, as L1 would read it; so the next four"),
    ("cr3", Int64ub),
    ("cr4", Int64ub),
    ("efer", Int64ub),
    ("pat", Int64ub),
    ("l1_save", Bytes(0x300)),
    ("reserved_l1", Bytes(VMCB_PAGE_SIZE - 0x300), "zero"),
    ("vmcb12_control", Bytes(0x400)),
    ("vmcb12_save", Bytes(0x300), "L2's registers"),
    ("reserved_vmcb12", Bytes(VMCB_PAGE_SIZE - 0x700), "zero"),
    source="this project's format svm2, section 4; no QEMU writes it",
)
NESTED_STATE_VMX: Final = _sub(
    "cpu/kvm_nested_state/vmx",
    ("vmxon_pa", Int64ub),
    ("vmcs12_pa", Int64ub),
    ("smm_flags", Int16ub),
    source="QEMU 4.1",
    children=(
        _sub("cpu/kvm_nested_state/vmx/vmcs12", ("vmcs12", Bytes(0x1000)), source="QEMU 4.1"),
        _sub("cpu/kvm_nested_state/vmx/shadow_vmcs12", ("shadow_vmcs12", Bytes(0x1000)), source="QEMU 4.1"),
    ),
)
NESTED_STATE: Final = _sub(
    "cpu/nested_state",
    ("flags", Int16ub),
    ("format", Int16ub),
    ("size", Int32ub),
    source="QEMU 4.1 (VMX), 5.1 (SVM)",
    children=(NESTED_STATE_VMX, NESTED_STATE_SVM, NESTED_STATE_SVM2),
)

_CPU_SUBSECTIONS = (
    _sub("cpu/exception_info", ("pending", Int8ub), ("injected", Int8ub), ("has_payload", Int8ub),
         ("payload", Int64ub)),
    _sub("cpu/error_code", ("error_code", Int32sb), source="QEMU 10.2, machine types 10.2 and newer"),
    _msr("async_pf_msr"),
    _msr("async_pf_int_msr"),
    _msr("async_pv_eoi_msr"),
    _msr("steal_time_msr"),
    _msr("poll_control_msr"),
    _sub("cpu/fpop_ip_dp", ("fpop", Int16ub), ("fpip", Int64ub), ("fpdp", Int64ub)),
    _msr("msr_tsc_adjust"),
    _msr("msr_tscdeadline"),
    _msr("msr_ia32_misc_enable"),
    _msr("msr_ia32_feature_control"),
    _sub("cpu/msr_architectural_pmu", ("global", Array(4, Int64ub)), ("fixed_counters", Array(3, Int64ub)),
         ("gp_counters", Array(18, Int64ub)), ("gp_evtsel", Array(18, Int64ub))),
    _sub("cpu/mpx", ("bnd_regs", Array(4, Struct("lb" / Int64ub, "ub" / Int64ub))), ("bndcfgu", Int64ub),
         ("bndsts", Int64ub), ("msr_bndcfgs", Int64ub)),
    _sub("cpu/msr_hyperv_hypercall", ("guest_os_id", Int64ub), ("hypercall", Int64ub)),
    _msr("msr_hyperv_vapic"),
    _msr("msr_hyperv_time"),
    _sub("cpu/msr_hyperv_crash", ("crash_params", Array(5, Int64ub))),
    _msr("msr_hyperv_runtime"),
    _sub("cpu/msr_hyperv_synic", ("control", Int64ub), ("evt_page", Int64ub), ("msg_page", Int64ub),
         ("sint", Array(16, Int64ub))),
    _sub("cpu/msr_hyperv_stimer", ("config", Array(4, Int64ub)), ("count", Array(4, Int64ub))),
    _sub("cpu/msr_hyperv_reenlightenment", ("reenlightenment_control", Int64ub),
         ("tsc_emulation_control", Int64ub), ("tsc_emulation_status", Int64ub)),
    _sub("cpu/avx512", ("opmask", Array(8, Int64ub)), ("zmm_hi256", Array(16, Array(4, Int64ub))),
         ("hi16_zmm", Array(16, Array(8, Int64ub)))),
    _msr("xss"),
    _sub("cpu/umwait", ("umwait", Int32ub)),
    _sub("cpu/tsc_khz", ("tsc_khz", Int64sb)),
    _msr("msr_smi_count"),
    _sub("cpu/pkru", ("pkru", Int32ub)),
    _sub("cpu/pkrs", ("pkrs", Int32ub)),
    _msr("spec_ctrl"),
    _msr("amd_tsc_scale_msr", source="QEMU 6.2"),
    _msr("mcg_ext_ctl"),
    _sub("cpu/intel_pt", ("msr_rtit", Array(13, Int64ub))),
    _msr("virt_ssbd"),
    _sub("cpu/svn_npt", ("nested_cr3", Int64ub), ("nested_pg_mode", Int32ub), source="TCG's own SVM (sic: svn)"),
    _sub("cpu/svm_guest", ("int_ctl", Int32ub), source="TCG's own SVM"),
    NESTED_STATE,
    _sub("cpu/xen_vcpu", ("info_gpa", Int64ub), ("info_default_gpa", Int64ub), ("time_info_gpa", Int64ub),
         ("runstate_gpa", Int64ub), ("callback_vector", Int8ub), ("virq", Array(24, Int16ub)),
         ("singleshot_timer_ns", Int64ub), ("periodic_timer_period", Int64ub), source="QEMU 8.1.50"),
    _sub("cpu/msr_tsx_ctrl", ("tsx_ctrl", Int32ub)),
    _sub("cpu/intel_sgx", ("sgxlepubkeyhash", Array(4, Int64ub))),
    _sub("cpu/pdptrs", ("pdptrs", Array(4, Int64ub)), source="QEMU 7.0"),
    _sub("cpu/msr_xfd", ("xfd", Int64ub), ("xfd_err", Int64ub)),
    _msr("msr_hwcr", source=_SINCE_10_0),
    _sub("cpu/fred", ("fred", Array(9, Int64ub)), source=_SINCE_10_0),
    _sub("cpu/intel_amx_xtile", ("xtilecfg", Bytes(64)), ("xtiledata", Bytes(8192))),
    _sub("cpu/arch_lbr", ("lbr_ctl", Int64ub), ("lbr_depth", Int64ub),
         ("records", Array(32, Struct("from" / Int64ub, "to" / Int64ub, "info" / Int64ub)))),
    _sub("cpu/triple_fault", ("triple_fault_pending", Int8ub)),
    _msr("msr_pl0_ssp", source=_SINCE_11_1),
    _sub("cpu/cet", ("u_cet", Int64ub), ("s_cet", Int64ub), source=_SINCE_11_1, children=(
        _sub("cpu/cet_shstk", ("pl1_ssp", Int64ub), ("pl2_ssp", Int64ub), ("pl3_ssp", Int64ub),
             ("int_ssp_table", Int64ub), ("guest_ssp", Int64ub), source=_SINCE_11_1),)),
    _sub("cpu/apx", ("egprs", Array(16, Int64ub)), source=_SINCE_11_1),
)  # fmt: skip

# In the order in which QEMU writes them; it reads them in any order. All are version 1.
SUBSECTIONS: Final[Mapping[str, Subsection]] = {sub.name: sub for sub in _CPU_SUBSECTIONS}
