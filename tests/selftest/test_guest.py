# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests: what is put into their memory is legal, lies apart, and differs with the seed."""

from __future__ import annotations

import pytest

from qmpfilter.selftest import registers
from qmpfilter.selftest.case import Case, Mode
from qmpfilter.selftest.cases import RANDOM_CASES, cases
from qmpfilter.selftest.memory import L1_CODE, L2_CODE, MEMORY, contents
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET

CASES = list(cases(nested_paging=True, vgif=True))
SEEDS = range(40)


def save_areas(mode: Mode) -> list[dict[str, int]]:
    """VMCB12's registers by field, for many seeds."""
    pages = [registers.vmcb12(Case("", mode, seed=seed)) for seed in SEEDS]
    return [{name: SAVE.get(page, name, SAVE_OFFSET) for name in SAVE.fields} for page in pages]


def test_names_are_unique_and_every_mode_is_there() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {(case.mode, case.nested_paging) for case in CASES} == {
        (mode, paging) for mode in Mode for paging in (0, 1)
    }
    assert {case.mode for case in cases(nested_paging=False, vgif=False)} == set(Mode)
    assert sum(case.name.startswith("random") for case in CASES) == RANDOM_CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_overlaps(case: Case) -> None:
    end = 0
    for gpa, content in sorted(contents(case, registers.vmcb12(case)).items()):
        assert end <= gpa
        end = gpa + len(content)
    assert end <= MEMORY


@pytest.mark.parametrize("mode", Mode)
def test_what_vmrun_demands(mode: Mode) -> None:
    page = registers.vmcb12(Case("", mode))
    assert CONTROL.get(page, "intercept_word4") & 1
    assert CONTROL.get(page, "asid")
    for save in save_areas(mode):
        assert save["efer"] & 0x1000
        assert bool(save["efer"] & 0x400) == mode.long
        assert bool(save["cr0"] >> 31) == mode.paged
        assert not save["cr0"] >> 32
        assert save["cr0"] & 1 or not save["cr0"] >> 31
        assert bool(save["efer"] & 0x100) == mode.long
        assert save["cr4"] & 0x20 or not mode.long
        assert not save["dr6"] >> 32
        assert not save["dr7"] >> 32
        assert not save["dr7"] & 0xFF
        assert save["cpl"] == save["ss_attrib"] >> 5 & 3 == mode.cpl
        assert save["cs_attrib"] & 0x600 != 0x600


def test_seeds_make_a_difference_in_every_register() -> None:
    fixed = {"ss_base", "ss_limit", "cpl", "rip", "rsp", "idtr_base", "idtr_limit", "gdtr_base", "cs_selector"}
    fixed |= {"cs_base", "cs_limit"}
    unused = {name for name in SAVE.fields if not any(area[name] for area in save_areas(Mode.LONG))}
    for name in SAVE.fields.keys() - fixed - unused:
        assert len({area[name] for area in save_areas(Mode.LONG)}) > 1, name
    assert unused - fixed <= {
        *("gdtr_selector", "gdtr_attrib", "idtr_selector", "idtr_attrib", "vmpl"),
        *("s_cet", "ssp", "isst_addr", "dbgctl", "br_from", "br_to", "last_excp_from", "last_excp_to", "spec_ctrl"),
    }


def test_code_runs_where_it_says() -> None:
    case = CASES[0]
    placed = contents(case, registers.vmcb12(case))
    assert placed[L1_CODE].startswith(bytes.fromhex("0f01da 0f01d8 0f01db e611"))
    assert placed[L2_CODE] == bytes.fromhex("e610 0f01d9")
