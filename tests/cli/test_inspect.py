# SPDX-License-Identifier: GPL-2.0-or-later
"""The command as a person calls it: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qmpfilter.cli import inspect as inspect_command
from qmpfilter.cli.main import EXIT_BUG, EXIT_FINE, EXIT_HOST, EXIT_STREAM, main
from tests.helpers.fixtures import Fixture, fixtures

MIXED = next(fixture for fixture in fixtures() if fixture.name == "mid-mixed")
L2 = next(fixture for fixture in fixtures() if fixture.name == "mid-l2")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.stream"
    path.write_bytes(MIXED.file("stream"))
    return path


def test_text_names_machine_vcpus_and_nested_state(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(mixed)]) == EXIT_FINE
    text = capsys.readouterr().out
    for wanted in (
        MIXED.facts["machine"],
        "complete, divided and checked by vmdesc",
        "in L2: vCPU 0, vCPU 1",
        "vCPU 0: in L2",
        "vCPU 2: not in L2",
        "0x101 GUEST_MODE GIF_SET",
        "INTERCEPT_VMRUN",
        "L2's registers",
        "VMDESCRIPTION",
    ):
        assert wanted in text, wanted
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_vcpu_shows_that_one_alone(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--vcpu", "1", str(mixed)]) == EXIT_FINE
    text = capsys.readouterr().out
    assert "vCPU 1" in text
    assert "vCPU 0" not in text
    assert "VMDESCRIPTION" not in text


def test_sections_shows_the_table_alone(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--sections", str(mixed)]) == EXIT_FINE
    text = capsys.readouterr().out
    assert "VMDESCRIPTION" in text
    assert "vCPU" not in text


def test_hex_dumps_the_page(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--hex", "--vcpu", "0", str(mixed)]) == EXIT_FINE
    assert "\n  5f0  " in capsys.readouterr().out


def test_json_has_stable_keys_and_unpadded_numbers(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", str(mixed)]) == EXIT_FINE
    value = json.loads(capsys.readouterr().out)
    assert set(value) == {"format", "input", "stream", "ram", "sections", "undecoded_vcpus", "vcpus", "error"}
    assert value["error"] is None
    assert value["stream"]["complete"] is True
    assert sum(row["size"] for row in value["sections"]) + 8 == value["input"]["stream_bytes"]
    vcpu = value["vcpus"][0]
    assert vcpu["in_l2"] is True
    assert vcpu["nested_state"]["flags"] == "0x101"
    assert vcpu["nested_state"]["l1_save"]["rax"] == vcpu["nested_state"]["vmcb_pa"]
    assert vcpu["registers"]["interrupt_injected"] == -1
    assert value["vcpus"][2]["nested_state"] is None


def test_standard_input(mixed: Path) -> None:
    command = [sys.executable, "-m", "qmpfilter", "inspect", "--json", "-"]
    done = subprocess.run(command, input=mixed.read_bytes(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (EXIT_FINE, b"")
    assert json.loads(done.stdout)["input"]["stream_bytes"] == mixed.stat().st_size


@pytest.mark.parametrize("fixture", fixtures(role="save"), ids=str)
def test_save_images_of_every_compression(
    fixture: Fixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "guest.save"
    image.write_bytes(fixture.file("save"))
    assert main(["inspect", "--json", str(image)]) == EXIT_FINE
    value = json.loads(capsys.readouterr().out)
    assert value["input"]["kind"] == "libvirt save image"
    assert value["stream"]["complete"] is True
    assert [vcpu["in_l2"] for vcpu in value["vcpus"]] == [row["mode"] == "L2" for row in fixture.facts["vcpus"]]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.88, 0.9, 0.999])
def test_what_was_read_before_a_cut_is_shown(keep: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = L2.file("stream")
    path = tmp_path / "cut.stream"
    path.write_bytes(data[: int(len(data) * keep)])
    assert main(["inspect", "--json", str(path)]) == EXIT_STREAM
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert value["error"]["kind"] == "TruncatedError"
    assert err == f"qmpfilter: {value['error']['message']}\n"
    if keep:
        assert value["stream"]["machine"] == L2.facts["machine"]
    if keep > 0.9:
        assert value["vcpus"][0]["in_l2"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "/nowhere/at-all"], "/nowhere/at-all"),
        (["inspect", "/"], "directory"),
        (["inspect"], "FILE"),
        (["inspect", "--json", "--hex", "-"], "--json"),
        (["inspect", "--sections", "--vcpu", "0", "-"], "--sections"),
        (["inspect", "--nonsense", "-"], "--nonsense"),
        ([], "Missing command"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_and_host_problems(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == EXIT_HOST
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err


def test_a_vcpu_that_is_not_there(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--vcpu", "9", str(mixed)]) == EXIT_HOST
    assert capsys.readouterr().err == "qmpfilter: no vCPU 9 in this stream; it has 0, 1, 2, 3\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "offset 0x0"),
        (b"\x7fELF" + bytes(60), "QEVM"),
        (b"\x16\x03\x01\x02\x00\x01", "TLS"),
        (b"\x11\x22\x33\x44" + bytes(60), "multifd"),
    ],
)
def test_what_is_no_stream(data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert main(["inspect", str(path)]) == EXIT_STREAM
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_a_bug_is_one_line_too(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a key")

    monkeypatch.setattr(inspect_command, "report_as_json", broken)
    assert main(["inspect", "--json", str(mixed)]) == EXIT_BUG
    err = capsys.readouterr().err
    assert err.startswith("qmpfilter: a bug of qmpfilter at ")
    assert "KeyError" in err
    assert err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(mixed: Path) -> None:
    command = f"{sys.executable} -m qmpfilter inspect --json {mixed} | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (EXIT_FINE, b"")
