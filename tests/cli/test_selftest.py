# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter selftest`: what it prints and how it ends; the cases themselves need a host with SVM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpfilter.cli.main import EXIT_FINE, EXIT_HOST, main
from qmpfilter.kvm.device import CpuidRow, Kvm
from qmpfilter.selftest import suite
from qmpfilter.selftest.case import Case
from qmpfilter.selftest.run import Result

GOOD = Result(Case("64-bit"), exempt={"dr7": True, "g_pat": False})
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
    assert capsys.readouterr().out.splitlines() == [
        "PASS  64-bit",
        "Not exact by the conversion's own word, from the stream alone: dr7, g_pat",
        "  Of these, other than what KVM wrote: dr7 in 1",
        "1 of 1 cases passed",
    ]


def test_a_failure_says_what_differs(outcome: list[Result], capsys: pytest.CaptureFixture[str]) -> None:
    outcome.append(BAD)
    assert main(["selftest"]) == EXIT_HOST
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[1:3] == ["FAIL  in SMM", "      L1's rax is 00, not 01"]
    assert lines[-1] == "1 of 2 cases passed"
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
            "exempt": {"dr7": True, "g_pat": False},
            "exempt_with_memory": {},
        }
    ]


def test_no_such_case(outcome: list[Result], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--filter", "ring 7"]) == EXIT_HOST
    assert "no case has 'ring 7' in its name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ecx", "nested", "capabilities", "said"),
    [
        (0, None, 1, "it takes an AMD CPU with SVM on, and kvm_amd loaded"),
        (0, "0\n", 1, "kvm_amd was loaded with nested=0; load it with nested=1"),
        (0, "1\n", 1, "although kvm_amd has nested=1"),
        (1 << 2, "1\n", 0, "cannot save nested state"),
    ],
)
def test_a_host_that_cannot(
    ecx: int,
    nested: str | None,
    capabilities: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parameter = tmp_path / "nested"
    if nested is not None:
        parameter.write_text(nested)
    monkeypatch.setattr(suite, "_NESTED", parameter)
    monkeypatch.setattr(Kvm, "__init__", lambda self: setattr(self, "_fd", -1))
    monkeypatch.setattr(Kvm, "supported_cpuid", lambda _: [CpuidRow(0x8000_0001, 0, 0, 0, 0, ecx, 0)])
    monkeypatch.setattr(Kvm, "check_extension", lambda *_: capabilities)
    assert main(["selftest"]) == EXIT_HOST
    assert said in capsys.readouterr().err
