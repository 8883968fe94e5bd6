# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that hold what arrived."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from qmpfilter.errors import HostError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.rewriter import VcpuReport
from qmpfilter.relay.records import write_records
from qmpfilter.saveimage.outfile import OutputFile
from qmpfilter.svm import native
from tests.helpers.convert import rewritten
from tests.helpers.fixtures import fixtures

MIXED = next(fixture for fixture in fixtures() if fixture.name == "mid-mixed")


@pytest.fixture(scope="module")
def vcpus() -> Sequence[VcpuReport]:
    """Some in L2, some not."""
    return rewritten(MIXED.file("stream"), Carrier.ANNEX)[1].vcpus


def listed(directory: Path) -> set[str]:
    """Whatever is there, under whatever name."""
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("before", [None, b"of another arrival"])
def test_each_state_is_a_file_for_its_owner_alone(
    tmp_path: Path, vcpus: Sequence[VcpuReport], before: bytes | None
) -> None:
    directory = tmp_path / "records/session"
    states = {f"vcpu{vcpu.index}.svm2": vcpu.state for vcpu in vcpus if vcpu.state is not None}
    assert 0 < len(states) < len(vcpus)
    if before is not None:
        directory.mkdir(parents=True, mode=0o700)
        for name in states:
            (directory / name).write_bytes(before)
            (directory / name).chmod(0o644)
    assert write_records(directory, vcpus) == [str(directory / name) for name in states]
    assert listed(directory) == set(states)
    assert directory.stat().st_mode & 0o777 == 0o700
    for name, state in states.items():
        path = directory / name
        assert path.stat().st_mode & 0o777 == 0o600
        assert native.decode_blob(path.read_bytes()) == state


def test_without_a_state_nothing_is_made(tmp_path: Path, vcpus: Sequence[VcpuReport]) -> None:
    assert write_records(tmp_path / "records", [vcpu for vcpu in vcpus if vcpu.state is None]) == []
    assert listed(tmp_path) == set()


def test_what_cannot_be_finished_leaves_what_was_there(
    tmp_path: Path, vcpus: Sequence[VcpuReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    vcpu = next(vcpu for vcpu in vcpus if vcpu.state is not None)
    path = tmp_path / f"vcpu{vcpu.index}.svm2"
    path.write_bytes(b"of another arrival")

    def full(_: OutputFile) -> None:
        raise HostError("No space left on device")

    monkeypatch.setattr(OutputFile, "commit", full)
    with pytest.raises(HostError, match="No space left"):
        write_records(tmp_path, [vcpu])
    assert (listed(tmp_path), path.read_bytes()) == ({path.name}, b"of another arrival")


@pytest.mark.parametrize(
    ("in_the_way", "error"),
    [("records", FileExistsError), ("", NotADirectoryError), ("records/vcpu{index}.svm2/x", HostError)],
    ids=["of the directory", "above the directory", "of the file"],
)
def test_what_is_in_the_way_is_said(
    tmp_path: Path, vcpus: Sequence[VcpuReport], in_the_way: str, error: type[Exception]
) -> None:
    vcpu = next(vcpu for vcpu in vcpus if vcpu.state is not None)
    place = tmp_path / "host" / in_the_way.format(index=vcpu.index)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"")
    with pytest.raises(error):
        write_records(tmp_path / "host/records", [vcpu])
    assert place.read_bytes() == b""
