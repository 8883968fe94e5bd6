# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said where /dev/kvm cannot be used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qmpfilter.errors import HostError
from qmpfilter.kvm import device
from qmpfilter.kvm.device import Kvm, KvmError
from qmpfilter.kvm.uapi import Ioctl


def test_no_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_DEVICE", tmp_path / "kvm")
    with pytest.raises(HostError, match="is not there: load kvm_amd"):
        Kvm()


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EACCES, "be root, or a member of its group"), (errno.ENXIO, "cannot be opened")]
)
def test_kvm_that_cannot_be_opened(code: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=said):
        Kvm()


def test_something_else_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvm").write_bytes(b"")
    monkeypatch.setattr(device, "_DEVICE", tmp_path / "kvm")
    with pytest.raises(KvmError, match="KVM_GET_API_VERSION: ENOTTY") as refused:
        Kvm()
    assert (refused.value.request, refused.value.errno) == (Ioctl.GET_API_VERSION, errno.ENOTTY)
