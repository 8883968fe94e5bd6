# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts build, boot, and offer what the laboratory is for."""

from __future__ import annotations

import pytest

from qmpfilter.verdict.version import Version
from tests.lab.emulator import EmulatedHost, JobFailed

pytestmark = pytest.mark.lab

SECONDS = 60.0


def _output(host: EmulatedHost, *argv: str) -> str:
    return host.run(argv, {}, SECONDS).output


def test_kernel_is_the_expected_one(emulated_host: EmulatedHost) -> None:
    assert emulated_host.kernel.startswith(emulated_host.host.kernel)


def test_kvm_nests(emulated_host: EmulatedHost) -> None:
    _output(emulated_host, "test", "-c", "/dev/kvm")
    parameters = "/sys/module/kvm_amd/parameters"
    assert _output(emulated_host, "cat", f"{parameters}/nested", f"{parameters}/npt").split() == ["1", "Y"]


def test_qemu_is_the_expected_one(emulated_host: EmulatedHost) -> None:
    assert f"version {emulated_host.host.qemu}" in _output(emulated_host, "qemu-system-x86_64", "--version")


def test_libvirt_is_not_older_than_expected(emulated_host: EmulatedHost) -> None:
    version = Version.parse(_output(emulated_host, "libvirtd", "--version").split()[-1])
    assert version.branch >= Version.parse(emulated_host.host.libvirt).branch


def test_failure_of_a_job_says_what_the_job_said(emulated_host: EmulatedHost) -> None:
    with pytest.raises(JobFailed, match="no such luck"):
        _output(emulated_host, "sh", "-c", "echo no such luck; exit 3")


def test_job_past_its_deadline_ends(emulated_host: EmulatedHost) -> None:
    with pytest.raises(JobFailed, match="deadline of 1 s"):
        emulated_host.run(["sleep", "60"], {}, 1.0)


def test_files_come_back_whole(emulated_host: EmulatedHost) -> None:
    content = bytes(range(256)) * 4096
    result = emulated_host.run(["cp", "given", "out/taken"], {"given": content}, SECONDS)
    assert result.files == {"taken": content}
