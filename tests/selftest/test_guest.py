# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests: what is put into their memory is legal, lies apart, and is not the same twice."""

from __future__ import annotations

import pytest

from qmpfilter.selftest.cases import RANDOM_CASES, cases
from qmpfilter.selftest.guest import _L1_CODE, _L2_CODE, MEMORY, VMCB12, Case, Mode, _contents
from qmpfilter.svm.vmcb import CONTROL, SAVE, SAVE_OFFSET

CASES = list(cases(nested_paging=True, vgif=True))


def test_names_are_unique_and_every_mode_is_there() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {(case.mode, case.nested_paging) for case in CASES} >= {(mode, True) for mode in Mode}
    assert {case.mode for case in cases(nested_paging=False, vgif=False)} == set(Mode) - {Mode.REAL}
    assert sum(case.name.startswith("random") for case in CASES) == RANDOM_CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_memory(case: Case) -> None:
    end = 0
    for gpa, content in sorted(_contents(case).items()):
        assert end <= gpa
        end = gpa + len(content)
    assert end <= MEMORY
    page = _contents(case)[VMCB12]
    assert CONTROL.get(page, "intercept_word4") & 1
    assert CONTROL.get(page, "asid")
    efer, cr0 = SAVE.get(page, "efer", SAVE_OFFSET), SAVE.get(page, "cr0", SAVE_OFFSET)
    assert efer & 0x1000
    long = case.mode in (Mode.LONG, Mode.USER)
    assert bool(efer & 0x500) == long
    assert bool(cr0 >> 31) == (case.mode is not Mode.REAL)


def test_seeds_make_a_difference() -> None:
    pages = {_contents(Case("", seed=seed))[VMCB12] for seed in range(20)}
    assert len(pages) == 20


def test_code_runs_where_it_says() -> None:
    contents = _contents(CASES[0])
    assert contents[_L1_CODE].startswith(bytes.fromhex("0f01d8 0f01db e611"))
    assert contents[_L2_CODE] == bytes.fromhex("e610 0f01d9")
