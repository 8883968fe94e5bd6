# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter selftest`: what it prints and how it ends; the cases themselves need a host with SVM."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from qmpfilter.cli.main import EXIT_FINE, EXIT_HOST, main
from qmpfilter.kvm.device import CpuidRow, Kvm
from qmpfilter.selftest.guest import Case
from qmpfilter.selftest.run import Result

GOOD = Result(Case("64-bit"), exempt={"dr7": False})
BAD = Result(Case("in SMM"), failures=["L1's rax is 00, not 01"])


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    results: list[Result] = [GOOD]

    def some(wanted: str) -> Iterator[Result]:
        return (result for result in results if wanted in result.case.name)

    monkeypatch.setattr("qmpfilter.cli.selftest.run_all", some)
    return results


def test_all_is_well(outcome: list[Result], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest"]) == EXIT_FINE
    assert capsys.readouterr().out == "PASS  64-bit\n1 of 1 cases passed\n"


def test_a_failure_says_what_differs(outcome: list[Result], capsys: pytest.CaptureFixture[str]) -> None:
    outcome.append(BAD)
    assert main(["selftest"]) == EXIT_HOST
    said = capsys.readouterr()
    assert said.out.splitlines()[1:] == ["FAIL  in SMM", "      L1's rax is 00, not 01", "1 of 2 cases passed"]
    assert said.err == "qmpfilter: 1 of 2 cases failed\n"


def test_one_document(outcome: list[Result], capsys: pytest.CaptureFixture[str]) -> None:
    outcome.append(BAD)
    assert main(["selftest", "--json", "--filter", "64"]) == EXIT_FINE
    told = json.loads(capsys.readouterr().out)
    assert told == [
        {
            "case": "64-bit",
            "mode": "64-bit",
            "nested_paging": False,
            "passed": True,
            "failures": [],
            "exempt": {"dr7": False},
        }
    ]


@pytest.mark.parametrize(
    ("ecx", "nested_size", "said"),
    [(0, 4224, "kvm_amd's parameter nested=1"), (1 << 2, 0, "cannot save nested state")],
)
def test_a_host_that_cannot(
    ecx: int, nested_size: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Kvm, "__init__", lambda self: setattr(self, "_fd", -1))
    monkeypatch.setattr(Kvm, "supported_cpuid", lambda _: [CpuidRow(0x8000_0001, 0, 0, 0, 0, ecx, 0)])
    monkeypatch.setattr(Kvm, "check_extension", lambda *_: nested_size)
    assert main(["selftest"]) == EXIT_HOST
    assert said in capsys.readouterr().err
