# SPDX-License-Identifier: GPL-2.0-or-later
"""The command as a person calls it; what it says of a host is tested where the checks are."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpfilter.cli import doctor as doctor_command
from qmpfilter.cli.main import EXIT_FINE, EXIT_HOST, main
from qmpfilter.doctor.survey import Survey
from qmpfilter.verdict.facts import HostFacts
from tests.doctor.roots import MAINLINE, Host


@pytest.fixture
def fit(tmp_path: Path) -> Survey:
    return Host(kernel=MAINLINE).survey(tmp_path)


def _be(monkeypatch: pytest.MonkeyPatch, survey: Survey) -> None:
    monkeypatch.setattr(doctor_command, "gather", lambda *, qemu: survey)


def test_fit_host(fit: Survey, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _be(monkeypatch, fit)
    assert main(["doctor"]) == EXIT_FINE
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("This host can take guests that run guests: ")
    assert err == ""


def test_unfit_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _be(monkeypatch, Host(kernel=MAINLINE, programs={}).survey(tmp_path))
    assert main(["doctor"]) == EXIT_HOST
    out, err = capsys.readouterr()
    assert "  QEMU: Checking for an installed QEMU" in out
    assert err == "qmpfilter: 1 check failed\n"


def test_json_is_the_facts_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unfit = Host(kernel=MAINLINE, programs={}).survey(tmp_path)
    _be(monkeypatch, unfit)
    assert main(["doctor", "--json"]) == EXIT_FINE
    out, err = capsys.readouterr()
    assert HostFacts.from_json(out) == unfit.facts
    assert err == ""


def test_this_machine_gets_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) in (EXIT_FINE, EXIT_HOST)
    out, _ = capsys.readouterr()
    assert out.splitlines()[-1].startswith("This host ")
    assert main(["doctor", "--json"]) == EXIT_FINE
    assert HostFacts.from_json(capsys.readouterr().out).kernel_release


def test_named_qemu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--qemu", "/nowhere/qemu"]) == EXIT_HOST
    assert "/nowhere/qemu" in capsys.readouterr().err
