# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that speaks svm2: its records are exact, L2 is restored from one alone, and no damaged one is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qmpfilter.selftest.cases import RANDOM_CASES, cases
from qmpfilter.svm.svm2 import Svm2Flags, Validity
from tests.lab import losses
from tests.lab.emulator import EmulatedHost, JobFailed
from tests.lab.package import run_packaged, run_python
from tests.lab.svm2 import SVM2_HOSTS, kernel_tests
from tests.lab.test_selftest import reloaded

pytestmark = pytest.mark.lab

SECONDS = 400.0
MUTATIONS = 10_000
# The only one that a kernel has not always.
EXACT = ~Validity(0) & ~Validity.G_PAT
#: Gives a state back with another vmcb_pa, which makes it one that the record does not belong to.
EDITS_STATE = "svm_nested_vmcb12_gpa"
PARAMETER = "/sys/module/kvm_amd/parameters/svm2"
#: Not before Linux 7.2.
WITH_OWN_PAT = {"new-svm2"}


@pytest.fixture(scope="module")
def observed(svm2_host: EmulatedHost) -> dict[str, Any]:
    """Selftest's guests, restored with svm2 and without."""
    return losses.observe(svm2_host)


@pytest.fixture(scope="module")
def damaged(svm2_host: EmulatedHost) -> dict[str, Any]:
    """What came of damaged records."""
    left = run_python(svm2_host, ["-m", "inhost.damaged", str(MUTATIONS)], {}, SECONDS).files
    told: dict[str, Any] = json.loads(left["damaged.json"])
    return told


def test_every_record_is_what_vmexit_writes(observed: dict[str, Any]) -> None:
    assert {case["case"]: case["record"] for case in observed["cases"] if case["record"]} == {}
    assert [case["case"] for case in observed["cases"]] == [
        case.name for case in cases(nested_paging=True, vgif=True) if not case.smi
    ]
    for case in observed["cases"]:
        assert case["flags"] == Svm2Flags.AUTHORITATIVE
        own_pat = observed["own PAT"] and case["nested paging"]
        assert case["validity"] == (EXACT | Validity.G_PAT if own_pat else EXACT)


def test_a_breakpoint_of_userspace_is_not_l2s(observed: dict[str, Any]) -> None:
    debugged = observed["debugged"]
    assert debugged["dr7"] == debugged["told"]
    assert debugged["validity"] == EXACT & ~Validity.DR7


def test_l2_is_restored_from_the_record_with_all_its_registers_scrambled(observed: dict[str, Any]) -> None:
    wrong = {case["case"]: case["svm2"] + case["else"] for case in observed["cases"]}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_nor_does_it_take_nested_paging(svm2_host: EmulatedHost) -> None:
    with reloaded(svm2_host, npt=0):
        told = losses.observe(svm2_host, npt=0)
    assert told["cases"]
    assert [case for case in told["cases"] if case["record"] or case["svm2"] or case["else"]] == []


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_legacy_state_loses_what_svm2_keeps(svm2_host: EmulatedHost, observed: dict[str, Any], loss: str) -> None:
    legacy, svm2 = losses.rows(observed)[loss]
    assert losses.written()[svm2_host.host.name][loss] == (legacy, svm2), "python -m tests.lab.losses"
    fields, _ = losses.LOSSES[loss]
    if fields == ("g_pat",) and svm2_host.host.name not in WITH_OWN_PAT:
        assert legacy == "-"
        return
    assert not legacy.startswith("0 ")
    assert svm2.startswith("0 ")


def test_selftest_passes_as_on_a_stock_kernel(svm2_host: EmulatedHost) -> None:
    told = json.loads(run_packaged(svm2_host, SECONDS, "selftest", "--json", "--filter", "random").output)
    assert {item["case"]: item["failures"] for item in told if not item["passed"]} == {}
    assert len(told) == RANDOM_CASES


def test_the_kernels_own_tests_of_nested_svm_pass(svm2_host: EmulatedHost) -> None:
    files = kernel_tests(SVM2_HOSTS[svm2_host.host.name])
    edits = files.pop(EDITS_STATE, None)
    script = "".join(f"chmod +x {name}\n./{name} || exit 1\n" for name in files)
    svm2_host.run(["sh", "-c", script], files, SECONDS)
    if edits is None:
        return
    run = f"chmod +x {EDITS_STATE}; ./{EDITS_STATE}"
    with pytest.raises(JobFailed, match=r"(?s)not ok 7 vmcb12_gpa\.vmexit_unmappable.*pass:6 fail:1 "):
        svm2_host.run(["sh", "-c", run], {EDITS_STATE: edits}, SECONDS)
    svm2_host.run(
        ["sh", "-c", f"echo N >{PARAMETER}; {run}; said=$?; echo Y >{PARAMETER}; exit $said"],
        {EDITS_STATE: edits},
        SECONDS,
    )


def test_a_damaged_record_of_any_kind_is_refused_and_moves_nothing(damaged: dict[str, Any]) -> None:
    kinds = damaged["kinds"]
    assert {kind: found for kind, found in kinds.items() if set(found) != {"errno 22, unmoved"}} == {}
    assert kinds["a bit of the record"]["errno 22, unmoved"] == 0x380 - 4
    assert kinds["a bit before it"]["errno 22, unmoved"] == 0xC80


def test_a_record_of_a_later_minor_is_taken(damaged: dict[str, Any]) -> None:
    assert damaged["minor"] == 0


def test_turned_off_it_is_a_stock_kernel(damaged: dict[str, Any]) -> None:
    errno, emitted = damaged["off"]
    assert (errno, emitted) == (0, False)


def test_mutated_records_harm_nothing(damaged: dict[str, Any]) -> None:
    outcomes = damaged["mutated"]
    taken, refused = outcomes.pop("taken"), outcomes.pop("errno 22, unmoved")
    assert taken + refused == MUTATIONS
    assert min(taken, refused) > MUTATIONS // 10
    assert all(outcome.startswith("taken, then ") for outcome in outcomes), outcomes
    assert damaged["log"] == []
    assert damaged["sound"] == []
