# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter verdict`` as a person and as a script calls it: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.cli.main import EXIT_FINE, EXIT_HOST, EXIT_STREAM, main
from qmpfilter.cli.verdict import EXIT_REFUSED, EXIT_UNKNOWN
from qmpfilter.verdict.facts import HostFacts, QemuBinary
from qmpfilter.verdict.version import Version
from tests.helpers.fixtures import fixtures

MIXED = next(fixture for fixture in fixtures() if fixture.name == "mid-mixed")
ON = ("--nested", "--npt")


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    path = tmp_path / "mixed.stream"
    path.write_bytes(MIXED.file("stream"))
    return str(path)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with everything but CPUID."""
    facts = HostFacts(
        kernel=Version(6, 1, 192),
        parameters={"kvm_amd": {"nested": "1", "npt": "Y"}},
        nested_state_size=4224,
        qemu=(QemuBinary("/usr/bin/qemu-system-x86_64", Version(7, 2, 22)),),
    )
    path = tmp_path / "host.json"
    path.write_text(json.dumps(facts.to_json()))
    return path


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_accepted(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", mixed, "--kernel", "6.1.192", "--qemu", "7.2", *ON]) == EXIT_FINE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{mixed}: accepted (kernel 6.1.192, QEMU 7.2)"
    assert lines[1:] == [f"vCPU {index}: accepted" for index in range(4)]


def test_refused_and_silent(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["verdict", mixed, "--kernel", "6.1.192", "--qemu", "7.2.22", "--nested", "--no-npt"])
    text = capsys.readouterr().out
    assert status == EXIT_REFUSED
    assert "vCPU 1: refused\n  refused by KVM_SET_NESTED_STATE: VMCB12's misc_ctl 0x1 has nested paging" in text
    assert "Nobody would notice" in text
    assert "vCPU 0: accepted" in text
    assert max(map(len, text.splitlines()[1:])) <= 80


def test_refused_and_noticed(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["verdict", mixed, "--kernel", "6.1.192", "--qemu", "8.2", "--nested", "--no-npt"])
    assert status == EXIT_REFUSED
    assert "Nobody would notice" not in capsys.readouterr().out


def test_unknown_names_what_is_missing(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", mixed, "--kernel", "6.1.192"]) == EXIT_UNKNOWN
    text = " ".join(capsys.readouterr().out.split())
    assert "perhaps refused by KVM_SET_NESTED_STATE (not known: kvm_amd's npt parameter): VMCB12's misc_ctl" in text
    assert "QEMU's version is not known" in text


def test_each_missing_fact_has_its_option(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", mixed, "--kernel", "6.9"]) == EXIT_UNKNOWN
    settling = [line for line in capsys.readouterr().out.splitlines() if line.startswith("To settle it: ")]
    assert settling == [
        "To settle it: --qemu tells QEMU's version.",
        "To settle it: --npt or --no-npt tells kvm_amd's npt parameter.",
        "To settle it: --kernel with three numbers tells the stable level of kernel 6.9.",
        "To settle it: --nested or --no-nested tells whether KVM nests.",
    ]
    assert main(["verdict", mixed, "--kernel", "6.1.192", "--qemu", "7.2", *ON]) == EXIT_FINE
    assert "To settle it" not in capsys.readouterr().out


def test_json_has_stable_keys(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verdict", mixed, "--kernel", "6.1.192", "--qemu", "7.2.22", "--nested", "--no-npt", "--json"]
    assert main(arguments) == EXIT_REFUSED
    value = _json(capsys)
    assert set(value) == {"format", "outcome", "kernel", "qemu", "vcpus", "notes"}
    assert (value["format"], value["outcome"], value["kernel"], value["qemu"]) == (1, "refused", "6.1.192", "7.2.22")
    assert [vcpu["index"] for vcpu in value["vcpus"]] == [0, 1, 2, 3]
    refused = value["vcpus"][1]
    assert (refused["outcome"], refused["silent"]) == ("refused", True)
    (reason,) = refused["reasons"]
    assert set(reason) == {"code", "answer", "stage", "field", "text", "missing", "source"}
    assert (reason["code"], reason["answer"], reason["stage"], reason["missing"]) == (
        "npt", "refuses", "KVM_SET_NESTED_STATE", [],
    )  # fmt: skip


def test_host_file(mixed: str, host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", mixed, "--host", str(host), "--json"]) == EXIT_FINE
    value = _json(capsys)
    assert (value["kernel"], value["qemu"]) == ("6.1.192", "7.2.22")


def test_single_fact_goes_before_the_files(mixed: str, host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verdict", mixed, "--host", str(host), "--qemu", "10.0.13", "--no-npt", "--json"]
    assert main(arguments) == EXIT_REFUSED
    value = _json(capsys)
    assert value["qemu"] == "10.0.13"
    assert value["vcpus"][1]["silent"] is False


def test_host_that_does_not_nest_now_but_will(mixed: str, tmp_path: Path, host: Path) -> None:
    facts = json.loads(host.read_text())
    facts["kvm"] |= {"nested_state_size": 0, "parameters": {"kvm_amd": {"nested": "0", "npt": "Y"}}}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(facts))
    assert main(["verdict", mixed, "--host", str(other)]) == EXIT_REFUSED
    assert main(["verdict", mixed, "--host", str(other), "--nested"]) == EXIT_FINE


def test_kernel_that_the_file_is_not_of_answers_for_itself(mixed: str, host: Path) -> None:
    arguments = ["verdict", mixed, "--host", str(host), "--kernel"]
    assert main([*arguments, "6.1.192"]) == EXIT_FINE
    assert main([*arguments, "5.7.19"]) == EXIT_REFUSED


def test_facts_from_standard_input(mixed: str, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(host.read_bytes())))
    assert main(["verdict", mixed, "--host", "-"]) == EXIT_FINE


def test_narrow_guest(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", mixed, "--kernel", "7.3.4", "--maxphyaddr", "32", *ON]) == EXIT_UNKNOWN
    assert "MAXPHYADDR" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a destination is needed: --host FILE, or --kernel V"),
        (["--kernel", "new"], "kernel new: "),
        (["--kernel", "5.14.0-570.el9.x86_64"], "kernel 5.14.0-570.el9.x86_64: its vendor carries KVM back"),
        (["--kernel", "6.8.0-45-generic"], "use --host with that host's 'qmpfilter doctor --json'"),
        (["--kernel", "6.1", "--qemu", "latest"], "'latest' is no version"),
        (["--kernel", "6.1", "--maxphyaddr", "64"], "32<=x<=52"),
        (["--host", "/nonexistent.json"], "/nonexistent.json: No such file"),
        (["--host", "/dev/null"], "/dev/null: not a file of host facts"),
    ],
)
def test_wrong_usage(mixed: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", mixed, *arguments]) == EXIT_HOST
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_stream_and_facts_cannot_both_be_standard_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", "-", "--host", "-"]) == EXIT_HOST
    assert "cannot both be standard input" in capsys.readouterr().err


def test_cut_stream_has_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut"
    path.write_bytes(MIXED.file("stream")[:-1000])
    assert main(["verdict", str(path), "--kernel", "6.1.192", *ON]) == EXIT_STREAM
    assert capsys.readouterr().out == ""


def test_help_says_what_each_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", "--help"]) == EXIT_FINE
    text = " ".join(capsys.readouterr().out.split())
    assert f"{EXIT_REFUSED} refused; {EXIT_UNKNOWN} unknown whether" in text
