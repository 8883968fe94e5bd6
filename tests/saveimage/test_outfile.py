# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from qmpfilter.errors import HostError
from qmpfilter.saveimage.outfile import OutputFile


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_committed_it_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    path.chmod(0o644)
    with OutputFile(str(path)) as output:
        output.write(b"after")
        assert path.read_bytes() == b"before"
        output.commit()
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["out"]


def test_nobody_else_can_read_it_while_it_is_written(tmp_path: Path) -> None:
    with OutputFile(str(tmp_path / "out")):
        (path,) = tmp_path.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.name.startswith(".out.")


def test_left_it_is_gone(tmp_path: Path) -> None:
    with OutputFile(str(tmp_path / "out")) as output:
        output.write(b"half")
    assert names(tmp_path) == []


def test_a_long_name_has_room(tmp_path: Path) -> None:
    with OutputFile(str(tmp_path / ("n" * 255))) as output:
        output.commit()
    assert names(tmp_path) == ["n" * 255]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_what_fails_before_the_rename_leaves_what_was_there(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").write_bytes(b"before")

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fails)
    with OutputFile(str(tmp_path / "out")) as output:
        output.write(b"after")
        with pytest.raises(HostError, match="out: Input/output error"):
            output.commit()
    assert (tmp_path / "out").read_bytes() == b"before"
    assert names(tmp_path) == ["out"]


def test_data_is_durable_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        calls.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_rename(old: Path, new: Path) -> None:
        calls.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    with OutputFile(str(tmp_path / "out")) as output:
        output.write(b"all")
        output.commit()
    assert calls == ["file", "rename", "directory"]


def test_a_fifo_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(HostError, match="not a regular file"):
        OutputFile(str(tmp_path / "fifo"))
    assert names(tmp_path) == ["fifo"]
