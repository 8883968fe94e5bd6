# SPDX-License-Identifier: GPL-2.0-or-later
"""The command as a person calls it: files that appear whole or not at all, and what is said of them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qmpfilter.cli.main import EXIT_BUG, EXIT_FINE, EXIT_HOST, EXIT_STREAM, main
from qmpfilter.filter import rewriter, vcpu
from qmpfilter.filter.carrier import Carrier
from qmpfilter.saveimage.header import HEADER_SIZE, SaveFormat
from qmpfilter.svm.section import CpuSection
from tests.filter.sections import good
from tests.filter.sections import stream as stream_of
from tests.fuzz.recordings import recording
from tests.helpers.convert import converted
from tests.helpers.fixtures import Fixture, fixtures
from tests.saveimage.images import COMPRESSED, compress, contents, image
from tests.svm.states import Case

MIXED = next(fixture for fixture in fixtures() if fixture.name == "mid-mixed").file("stream")
L1 = next(fixture for fixture in fixtures() if fixture.name == "mid-l1").file("stream")
SAVED = fixtures(role="save")
REFUSED = stream_of(good(), good(Case(control={"asid": 0}), index=5))
FORMATS = [SaveFormat.RAW, *COMPRESSED]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.write_bytes(MIXED)
    return path


def convert(source: Path | str, target: Path | str, to: str = "annex", *more: str) -> int:
    return main(["convert", str(source), str(target), "--to", to, *more])


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_there_and_back(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(source, tmp_path / "out") == EXIT_FINE
    assert (tmp_path / "out").read_bytes() == converted(MIXED, Carrier.ANNEX)
    said = capsys.readouterr().out
    for wanted in ("2 of 4 vCPUs converted to annex", "vCPU 0: legacy -> annex", "vCPU 2: unchanged: not in L2"):
        assert wanted in said
    assert convert(tmp_path / "out", tmp_path / "back", "legacy") == EXIT_FINE
    assert (tmp_path / "back").read_bytes() == MIXED
    assert left(tmp_path) == ["back", "in", "out"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600


def test_short_says_what_is_doubtful_and_verbose_says_all(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(source, tmp_path / "out") == EXIT_FINE
    short = capsys.readouterr().out
    assert "guessed: vmcb12_control.next_rip" in short
    assert "vmcb12_save.rip" not in short
    assert convert(source, tmp_path / "out", "annex", "--verbose") == EXIT_FINE
    assert "exact: vmcb12_save.rip" in capsys.readouterr().out


def test_json_has_every_field_of_every_vcpu(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(source, tmp_path / "out", "annex", "--json") == EXIT_FINE
    value = json.loads(capsys.readouterr().out)
    assert set(value) == {"format", "output", "to", "written", "edited_vcpus", "vcpus", "error"}
    assert (value["to"], value["written"], value["edited_vcpus"], value["error"]) == ("annex", True, 2, None)
    assert [vcpu["outcome"] for vcpu in value["vcpus"]] == ["converted", "converted", "not_in_l2", "not_in_l2"]
    assert {field["field"]: field["confidence"] for field in value["vcpus"][0]["fields"]}[
        "vmcb12_save.cr3"
    ] == "exact"


def test_json_of_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").write_bytes(REFUSED)
    assert convert(tmp_path / "in", tmp_path / "out", "annex", "--json") == EXIT_STREAM
    said = capsys.readouterr()
    value = json.loads(said.out)
    assert value["written"] is False
    assert value["error"]["kind"] == "RefusedError"
    assert "vCPU 5" in value["error"]["message"]
    assert "vCPU 5" in said.err


@pytest.mark.parametrize("to", [carrier.value for carrier in Carrier])
def test_a_stream_without_nested_state_comes_out_byte_for_byte(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").write_bytes(L1)
    assert convert(tmp_path / "in", tmp_path / "out", to) == EXIT_FINE
    assert (tmp_path / "out").read_bytes() == L1
    assert "unchanged" in capsys.readouterr().out


def test_in_may_be_out(source: Path, tmp_path: Path) -> None:
    assert convert(source, source) == EXIT_FINE
    assert source.read_bytes() == converted(MIXED, Carrier.ANNEX)
    assert left(tmp_path) == ["in"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"before")
    (tmp_path / "out").symlink_to("there/file")
    assert convert(source, tmp_path / "out") == EXIT_FINE
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == converted(MIXED, Carrier.ANNEX)
    assert left(tmp_path / "there") == ["file"]


# --- nothing at OUT


DAMAGED = {
    "cut": MIXED[:-1000],
    "cut in RAM": MIXED[:100_000],
    "refused": REFUSED,
    "more behind": MIXED + b"\0",
    "empty": b"",
    "no stream": b"no stream at all",
    "cut gzip": compress(MIXED, SaveFormat.GZIP)[:-9],
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("there", [True, False])
def test_what_is_not_converted_leaves_no_out(case: str, there: bool, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(DAMAGED[case])
    if there:
        (tmp_path / "out").write_bytes(b"before")
    assert convert(tmp_path / "in", tmp_path / "out") == EXIT_STREAM
    assert left(tmp_path) == (["in", "out"] if there else ["in"])
    if there:
        assert (tmp_path / "out").read_bytes() == b"before"


def test_a_bug_leaves_no_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # An edit that goes wrong: the record of one vCPU ends up with a flipped bit.
    right = vcpu.decide

    def wrong(told: CpuSection, target: Carrier) -> vcpu.Decision:
        decision = right(told, target)
        if decision.edit is None:
            return decision
        name = "cpu/kvm_nested_state/svm"
        payload = decision.edit.payloads[name][:-1] + b"\x01"
        edit = dataclasses.replace(decision.edit, payloads={**decision.edit.payloads, name: payload})
        return dataclasses.replace(decision, edit=edit)

    monkeypatch.setattr(rewriter, "decide", wrong)
    assert convert(source, tmp_path / "out") == EXIT_BUG
    assert "bug" in capsys.readouterr().err
    assert left(tmp_path) == ["in"]


def test_a_full_file_system_leaves_no_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert convert(source, tmp_path / "out") == EXIT_HOST
    assert capsys.readouterr().err == f"qmpfilter: {tmp_path / 'out'}: {os.strerror(errno.ENOSPC)}\n"
    assert left(tmp_path) == ["in"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_no_out(number: int, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "qmpfilter", "convert", "-", str(tmp_path / "out"), "--to", "annex"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(MIXED[:-1000])
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while not left(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(left(tmp_path)) == 1
        process.send_signal(number)
        assert process.wait(30) == 130
        process.stdin.close()
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("-", "OUT must be a file"),
        ("/dev/null", "not a regular file"),
        (".", "not a regular file"),
        ("no/such/directory", "No such file or directory"),
    ],
)
def test_places_where_nothing_can_be_written(
    target: str, said: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.chdir(source.parent):
        assert convert(source, target) == EXIT_HOST
    assert said in capsys.readouterr().err
    assert left(source.parent) == ["in"]


def test_no_such_input(tmp_path: Path) -> None:
    assert convert(tmp_path / "none", tmp_path / "out") == EXIT_HOST
    assert left(tmp_path) == []


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [sys.executable, "-m", "qmpfilter", "convert", "-", str(tmp_path / "out"), "--to", "annex"]
    subprocess.run(argv, input=compress(MIXED, SaveFormat.ZSTD), check=True, capture_output=True, timeout=60)
    assert contents(tmp_path, (tmp_path / "out").read_bytes()) == converted(MIXED, Carrier.ANNEX)
    assert (tmp_path / "out").read_bytes().startswith(b"\x28\xb5\x2f\xfd")


# --- compressed streams and save images


@functools.cache
def small() -> bytes:
    """The same guest, nearly without its memory."""
    return recording("mid-mixed").data


@pytest.mark.parametrize("format_", FORMATS, ids=lambda item: item.label)
@pytest.mark.parametrize("saved", [True, False], ids=["image", "stream"])
def test_recompressed_as_it_was_behind_the_same_header(format_: SaveFormat, saved: bool, tmp_path: Path) -> None:
    stream = small()
    payload = compress(stream, format_)
    before = image(payload, format_, cookie=b"<cookie/>") if saved else payload
    (tmp_path / "in").write_bytes(before)
    assert convert(tmp_path / "in", tmp_path / "out", "native") == EXIT_FINE
    after = (tmp_path / "out").read_bytes()
    head = len(before) - len(payload)
    assert after[:head] == before[:head]
    program = [] if format_ is SaveFormat.RAW else [format_.label, "-dc"]
    plain = after[head:]
    if program:
        plain = subprocess.run(program, input=plain, stdout=subprocess.PIPE, check=True, timeout=60).stdout
    assert plain == converted(stream, Carrier.NATIVE)
    assert convert(tmp_path / "out", tmp_path / "out", "legacy") == EXIT_FINE
    back = (tmp_path / "out").read_bytes()
    assert back[:head] == before[:head]
    assert contents(tmp_path, back) == stream


@pytest.mark.parametrize("fixture", SAVED, ids=str)
def test_what_libvirt_saved(fixture: Fixture, tmp_path: Path) -> None:
    before = fixture.file("save")
    original = contents(tmp_path, before)
    (tmp_path / "in").write_bytes(before)
    assert convert(tmp_path / "in", tmp_path / "out") == EXIT_FINE
    after = (tmp_path / "out").read_bytes()
    assert after[:HEADER_SIZE] == before[:HEADER_SIZE]
    assert contents(tmp_path, after) == converted(original, Carrier.ANNEX) != original
    assert convert(tmp_path / "out", tmp_path / "back", "legacy") == EXIT_FINE
    assert contents(tmp_path, (tmp_path / "back").read_bytes()) == original


def test_lzop_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").write_bytes(compress(MIXED, SaveFormat.LZOP))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert convert(tmp_path / "in", tmp_path / "out") == EXIT_HOST
    assert "install lzop" in capsys.readouterr().err
    assert left(tmp_path) == ["in"]


def test_the_report_goes_nowhere_but_out_is_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert convert(source, tmp_path / "out") == EXIT_HOST
    assert (tmp_path / "out").read_bytes() == converted(MIXED, Carrier.ANNEX)
