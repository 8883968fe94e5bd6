# SPDX-License-Identifier: GPL-2.0-or-later
"""The `cpu` section against a second copy of its tables, and parsing against building."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import construct
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpfilter.layout import Layout
from qmpfilter.wire import cpu
from qmpfilter.wire.vmsd import Subsection, header_size

#: QEMU's machine.c, `vmstate_x86_cpu`: offset, bytes, and the names here of the rows that its arrays became.
BLOCK = [
    (0, 128, "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15"),
    (128, 8, "rip"),
    (136, 8, "rflags"),
    (144, 4, "hflags"),
    (148, 2, "fcw"),
    (150, 2, "fsw"),
    (152, 2, "ftw"),
    (154, 2, "fpregs_format"),
    (156, 80, "fpregs"),
    (236, 20, "es_selector es_base es_limit es_flags"),
    (256, 20, "cs_selector cs_base cs_limit cs_flags"),
    (276, 20, "ss_selector ss_base ss_limit ss_flags"),
    (296, 20, "ds_selector ds_base ds_limit ds_flags"),
    (316, 20, "fs_selector fs_base fs_limit fs_flags"),
    (336, 20, "gs_selector gs_base gs_limit gs_flags"),
    (356, 20, "ldt_selector ldt_base ldt_limit ldt_flags"),
    (376, 20, "tr_selector tr_base tr_limit tr_flags"),
    (396, 20, "gdt_selector gdt_base gdt_limit gdt_flags"),
    (416, 20, "idt_selector idt_base idt_limit idt_flags"),
    (436, 4, "sysenter_cs"),
    (440, 8, "sysenter_esp"),
    (448, 8, "sysenter_eip"),
    (456, 8, "cr0"),
    (464, 8, "cr2"),
    (472, 8, "cr3"),
    (480, 8, "cr4"),
    (488, 64, "dr0 dr1 dr2 dr3 dr4 dr5 dr6 dr7"),
    (552, 4, "a20_mask"),
    (556, 4, "mxcsr"),
    (560, 256, "xmm"),
    (816, 8, "efer"),
    (824, 8, "star"),
    (832, 8, "lstar"),
    (840, 8, "cstar"),
    (848, 8, "fmask"),
    (856, 8, "kernelgsbase"),
    (864, 4, "smbase"),
    (868, 8, "pat"),
    (876, 4, "hflags2"),
    (880, 8, "vm_hsave"),
    (888, 8, "vm_vmcb"),
    (896, 8, "tsc_offset"),
    (904, 8, "intercept"),
    (912, 8, "intercept_cr_read intercept_cr_write intercept_dr_read intercept_dr_write"),
    (920, 4, "intercept_exceptions"),
    (924, 1, "v_tpr"),
    (925, 88, "mtrr_fixed"),
    (1013, 8, "mtrr_deftype"),
    (1021, 128, "mtrr_var"),
    (1149, 4, "interrupt_injected"),
    (1153, 4, "mp_state"),
    (1157, 8, "tsc"),
    (1165, 4, "exception_nr"),
    (1169, 1, "soft_interrupt"),
    (1170, 1, "nmi_injected"),
    (1171, 1, "nmi_pending"),
    (1172, 1, "has_error_code"),
    (1173, 4, "sipi_vector"),
    (1177, 8, "mcg_cap"),
    (1185, 8, "mcg_status"),
    (1193, 8, "mcg_ctl"),
    (1201, 320, "mce_banks"),
    (1521, 8, "tsc_aux"),
    (1529, 8, "system_time_msr"),
    (1537, 8, "wall_clock_msr"),
    (1545, 8, "xcr0"),
    (1553, 8, "xstate_bv"),
    (1561, 256, "ymmh"),
]

#: In the order in which QEMU writes them: name without `cpu/`, bytes of the fields.
SUBSECTIONS = [
    ("exception_info", 11),
    ("error_code", 4),
    ("async_pf_msr", 8),
    ("async_pf_int_msr", 8),
    ("async_pv_eoi_msr", 8),
    ("steal_time_msr", 8),
    ("poll_control_msr", 8),
    ("fpop_ip_dp", 18),
    ("msr_tsc_adjust", 8),
    ("msr_tscdeadline", 8),
    ("msr_ia32_misc_enable", 8),
    ("msr_ia32_feature_control", 8),
    ("msr_architectural_pmu", 344),
    ("mpx", 88),
    ("msr_hyperv_hypercall", 16),
    ("msr_hyperv_vapic", 8),
    ("msr_hyperv_time", 8),
    ("msr_hyperv_crash", 40),
    ("msr_hyperv_runtime", 8),
    ("msr_hyperv_synic", 152),
    ("msr_hyperv_stimer", 64),
    ("msr_hyperv_reenlightenment", 24),
    ("avx512", 1600),
    ("xss", 8),
    ("umwait", 4),
    ("tsc_khz", 8),
    ("msr_smi_count", 8),
    ("pkru", 4),
    ("pkrs", 4),
    ("spec_ctrl", 8),
    ("amd_tsc_scale_msr", 8),
    ("mcg_ext_ctl", 8),
    ("intel_pt", 104),
    ("virt_ssbd", 8),
    ("svn_npt", 12),
    ("svm_guest", 4),
    ("nested_state", 8),
    ("xen_vcpu", 97),
    ("msr_tsx_ctrl", 4),
    ("intel_sgx", 32),
    ("pdptrs", 32),
    ("msr_xfd", 16),
    ("msr_hwcr", 8),
    ("fred", 72),
    ("intel_amx_xtile", 8256),
    ("arch_lbr", 784),
    ("triple_fault", 1),
    ("msr_pl0_ssp", 8),
    ("cet", 16),
    ("apx", 128),
]

#: Below these two, by full path of names.
CHILDREN = {
    "cpu/nested_state": {
        "cpu/kvm_nested_state/vmx": 18,
        "cpu/kvm_nested_state/svm": 8 + 4096,
        "cpu/kvm_nested_state/svm2": 72 + 2 * 4096,
    },
    "cpu/kvm_nested_state/vmx": {
        "cpu/kvm_nested_state/vmx/vmcs12": 4096,
        "cpu/kvm_nested_state/vmx/shadow_vmcs12": 4096,
    },
    "cpu/cet": {"cpu/cet_shstk": 40},
}


def flattened(table: Mapping[str, Subsection]) -> dict[str, Subsection]:
    """All subsections of a table and below."""
    found: dict[str, Subsection] = {}
    for name, sub in table.items():
        found |= {name: sub} | flattened(sub.children)
    return found


ALL = flattened(cpu.SUBSECTIONS)


@pytest.mark.parametrize(("offset", "size", "names"), BLOCK)
def test_block_row(offset: int, size: int, names: str) -> None:
    """The fields of a row stand there, one after the other, and fill it."""
    for name in names.split():
        assert cpu.BLOCK.offset(name) == offset
        step = cpu.BLOCK.fields[name].size
        offset, size = offset + step, size - step
    assert size == 0


def test_block_has_no_other_rows() -> None:
    assert list(cpu.BLOCK.fields) == [name for _, _, names in BLOCK for name in names.split()]
    assert cpu.BLOCK.size == 1817


def test_signed_fields() -> None:
    signed = {name for name in cpu.BLOCK.fields if cpu.BLOCK.is_signed(name)}
    assert signed == {"a20_mask", "interrupt_injected", "exception_nr"}


def test_subsections_in_order() -> None:
    assert [(name.removeprefix("cpu/"), sub.layout.size) for name, sub in cpu.SUBSECTIONS.items()] == SUBSECTIONS
    assert len(SUBSECTIONS) == 50


def test_children() -> None:
    found = {
        name: {child: below.layout.size for child, below in sub.children.items()}
        for name, sub in ALL.items()
        if sub.children
    }
    assert found == CHILDREN


@pytest.mark.parametrize("name", ALL)
def test_subsection(name: str) -> None:
    assert ALL[name].name == ALL[name].layout.name == name
    assert ALL[name].version == 1


def test_nested_svm_adds_4164_bytes() -> None:
    outer, inner = cpu.NESTED_STATE, cpu.NESTED_STATE_SVM
    sizes = [header_size(outer.name), outer.layout.size, header_size(inner.name), inner.layout.size]
    assert sizes == [22, 8, 30, 8 + 4096]
    assert sum(sizes) == 4164
    assert inner.layout.span("vmcb12") == slice(8, 8 + cpu.VMCB_PAGE_SIZE)


def test_flag_bits() -> None:
    assert (cpu.HF_SMM, cpu.HF_GUEST, cpu.HF2_GIF) == (0x80000, 0x200000, 0x1)


# --- parsing and building


def values_of(type_: construct.Construct[Any, Any]) -> st.SearchStrategy[Any]:
    """Anything that a field of this type can hold."""
    if isinstance(type_, construct.Renamed):
        return values_of(type_.subcon)
    if isinstance(type_, construct.Array):
        count = type_.sizeof() // type_.subcon.sizeof()
        return st.lists(values_of(type_.subcon), min_size=count, max_size=count)
    if isinstance(type_, construct.Struct):
        return st.fixed_dictionaries({str(member.name): values_of(member) for member in type_.subcons})
    if isinstance(type_, construct.FormatField):
        bits = 8 * type_.sizeof()
        if str(type_.fmtstr)[-1].islower():
            return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
        return st.integers(0, (1 << bits) - 1)
    # Stretches of bytes are long; one pattern is as good as another.
    return st.binary(min_size=1, max_size=4).map(lambda fill: (fill * type_.sizeof())[: type_.sizeof()])


def contents(layout: Layout) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: values_of(field.type) for name, field in layout.fields.items()})


@settings(max_examples=settings().max_examples // 10)
@given(st.data())
@pytest.mark.parametrize("layout", [cpu.BLOCK, *(sub.layout for sub in ALL.values())], ids=lambda layout: layout.name)
def test_parse_undoes_build(layout: Layout, data: st.DataObject) -> None:
    values = data.draw(contents(layout))
    built = layout.build(values)
    assert len(built) == layout.size
    assert layout.parse(built) == values


@settings(max_examples=settings().max_examples // 10)
@given(st.binary(min_size=1, max_size=16))
def test_build_undoes_parse(fill: bytes) -> None:
    block = (fill * cpu.BLOCK.size)[: cpu.BLOCK.size]
    assert cpu.BLOCK.build(cpu.BLOCK.parse(block)) == block


@pytest.mark.parametrize(("name", "raw"), [
    ("rax", 0x0001020304050607), ("hflags", 0x90919293), ("efer", 0x1122334455667788),
    ("intercept_dr_write", 0x1234), ("v_tpr", 0x9C), ("interrupt_injected", -1), ("tsc", 1 << 63),
])  # fmt: skip
def test_field_in_place(name: str, raw: int) -> None:
    block = bytearray(cpu.BLOCK.size + 9)
    cpu.BLOCK.put(block, name, raw, base=9)
    size = cpu.BLOCK.fields[name].size
    at = 9 + cpu.BLOCK.offset(name)
    assert block[at : at + size] == (raw % (1 << 8 * size)).to_bytes(size, "big")
    assert cpu.BLOCK.get(block, name, base=9) == raw
    assert not any(block[:at] + block[at + size :])
