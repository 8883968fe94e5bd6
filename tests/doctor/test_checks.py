# SPDX-License-Identifier: GPL-2.0-or-later
"""Made-up hosts, and what the doctor says of each: all that did not pass, and how it begins."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from qmpfilter.doctor.checks import CHECKS, Level, examine
from qmpfilter.doctor.gather import Device
from qmpfilter.verdict.cpuid import Cpuid
from tests.doctor.roots import CPUID, MAINLINE, PROXMOX, QEMU, RHEL, UBUNTU, Host

FAIL, WARN = Level.FAIL, Level.WARN
Lines = list[tuple[Level, str, str]]

LBR = (WARN, "6.1.192 for carrying L1's LBR registers", "last branch records")
PDPTRS = (WARN, "6.1.192 for reloading the PDPTRs of an L2 in PAE mode", "a 32-bit L2")
DEBIAN_LINES = [LBR, PDPTRS]
NO_PARAMETERS: dict[str, dict[str, str]] = {"kvm": {}, "kvm_amd": {}}


def unknown_level(release: str) -> tuple[Level, str, str]:
    return WARN, "if the release tells the patch level", f"{release}: unknown patch level"


def refusal(version: str, hint: str = "up to 8.1") -> tuple[Level, str, str]:
    return WARN, f"{version} for heeding a kernel's refusal", hint


def error_code(version: str, hint: str = "the error code") -> tuple[Level, str, str]:
    return WARN, f"{version} for carrying an exception's error code", hint


# fmt: off
HOSTS: list[tuple[str, Host, Lines]] = [
    ("Debian", Host(), DEBIAN_LINES),
    ("Linux 7.2 of its own", Host(kernel=MAINLINE), []),
    ("Hygon", Host(kernel=MAINLINE, vendor="HygonGenuine"), []),
    ("svm2 in kvm_amd", Host(kernel=MAINLINE, modules={"kvm_amd": {"nested": "1", "npt": "1", "svm2": "Y"}}), []),
    ("Ubuntu", Host(kernel=UBUNTU), [unknown_level("6.8.0-45-generic")]),
    ("Red Hat", Host(kernel=RHEL), [unknown_level("5.14.0-427.13.1.el9_4.x86_64")]),
    ("openEuler", Host(kernel=("5.10.0-60.18.0.50.oe2203.x86_64", "Linux version 5.10.0-60.18.0.50.oe2203.x86_64")), [
        unknown_level("5.10.0-60.18.0.50.oe2203.x86_64"),
    ]),
    ("Proxmox", Host(kernel=PROXMOX), [unknown_level("6.8.12-1-pve")]),
    ("no /proc", Host(kernel=None, vendor=None), [
        (WARN, "for an AMD processor", "not known"),
        unknown_level("no release"),
    ]),
    ("level not in the release's name", Host(kernel=("6.1.0-56-cloud-amd64", "Linux version")), [
        unknown_level("6.1.0-56-cloud-amd64"),
        (WARN, "6.1 for giving the current interrupt shadow", "not known; if not: int_state"),
        (WARN, "6.1 for giving the current next_rip", "not known; if not: a soft"),
        (WARN, "6.1 for marking VMCB02 dirty after a restore", "not known; if not: the proc"),
        (WARN, "6.1 for carrying L1's LBR registers", "last branch records"),
        (WARN, "6.1 for reloading the PDPTRs of an L2 in PAE mode", "a 32-bit L2"),
    ]),
    ("Linux 5.10", Host(kernel=("5.10.200", "Linux version 5.10.200 (me@home) #1 SMP")), [
        (WARN, "5.10.200 for keeping a pending VMRUN over a restore", "it drops RUN_PENDING"),
        (WARN, "5.10.200 for giving VMLOAD state with L1's save area", "FS, GS, TR"),
        (WARN, "5.10.200 for giving the current interrupt shadow", "int_state is that of"),
        (WARN, "5.10.200 for giving the current next_rip", "a soft interrupt"),
        (WARN, "5.10.200 for carrying L1's LBR registers", "last branch records"),
        (WARN, "5.10.200 for reloading the PDPTRs of an L2 in PAE mode", "a 32-bit L2"),
    ]),
    ("Linux 5.4", Host(kernel=("5.4.1", "Linux version 5.4.1 (me@home) #1 SMP"), device=Device(None, 0, 0, CPUID)), [
        (FAIL, "for KVM_CAP_NESTED_STATE of 4224 bytes", "it is 0: "),
        (FAIL, "for legacy nested state", "mend"),
    ]),
    ("Intel", Host(kernel=MAINLINE, vendor="GenuineIntel", flags="vmx", modules={"kvm": {}, "kvm_intel": {}},
                   device=Device(None, 8320, 0xFF, CPUID)), [
        (FAIL, "for an AMD processor", "SVM is AMD's and Hygon's alone"),
    ]),
    ("Intel, kvm_amd built in", Host(kernel=MAINLINE, vendor="GenuineIntel", flags="vmx"), [
        (FAIL, "for an AMD processor", "SVM is AMD's and Hygon's alone"),
    ]),
    ("not x86", Host(kernel=MAINLINE, vendor="", flags="", modules={"kvm": {}},
                     device=Device(None, 0, 0, Cpuid(()))), [
        (FAIL, "for an AMD processor", "SVM is AMD's and Hygon's alone"),
    ]),
    ("AMD without SVM, KVM of another kind", Host(kernel=MAINLINE, flags="", modules={"kvm": {}},
                                                  device=Device(None, 0, 0, CPUID)), [
        (FAIL, "for SVM", "enable SVM in the firmware's setup"),
    ]),
    ("kvm_amd not loaded", Host(kernel=MAINLINE, modules={}, device=Device(errno.ENOENT)), [
        (FAIL, "if module kvm_amd is loaded", "run 'modprobe kvm_amd'"),
        (FAIL, "if device /dev/kvm exists", "load kvm_amd; in a container"),
    ]),
    ("container without the device", Host(kernel=MAINLINE, device=Device(errno.ENOENT)), [
        (FAIL, "if device /dev/kvm exists", "load kvm_amd; in a container"),
    ]),
    ("another user", Host(kernel=MAINLINE, device=Device(errno.EACCES)), [
        (FAIL, "if device /dev/kvm is accessible", "Permission denied; run this as root"),
    ]),
    ("device without its module", Host(kernel=MAINLINE, device=Device(errno.ENODEV)), [
        (FAIL, "if device /dev/kvm answers", "No such device; load kvm_amd again"),
    ]),
    ("nested=0, Linux 7.2", Host(kernel=MAINLINE, modules={"kvm": {}, "kvm_amd": {"nested": "0", "npt": "Y"}},
                                 device=Device(None, 0, 0, CPUID.changed(without=["SVM"]))), [
        (FAIL, "if kvm_amd lets guests nest (nested=1)", "stop all guests, run 'modprobe -r kvm_amd'"),
        (FAIL, "for KVM_CAP_NESTED_STATE of 4224 bytes", "it is 0: "),
        (FAIL, "for legacy nested state", "mend"),
    ]),
    ("nested=0, before 7.2", Host(modules={"kvm": {}, "kvm_amd": {"nested": "0", "npt": "Y"}},
                                  device=Device(None, 4224, 0, CPUID.changed(without=["SVM"]))), [
        (FAIL, "if kvm_amd lets guests nest (nested=1)", "stop all guests, run 'modprobe -r kvm_amd'"),
        *DEBIAN_LINES,
        (FAIL, "for legacy nested state", "mend"),
    ]),
    ("npt=0", Host(kernel=MAINLINE, modules={"kvm": {}, "kvm_amd": {"nested": "1", "npt": "N"}}), [
        (WARN, "if kvm_amd uses nested paging (npt=1)", "a guest whose L2"),
    ]),
    ("parameters hidden", Host(kernel=MAINLINE, modules=NO_PARAMETERS), [
        (WARN, "if kvm_amd lets guests nest (nested=1)", "not known"),
        (WARN, "if kvm_amd uses nested paging (npt=1)", "not known"),
    ]),
    ("no QEMU", Host(kernel=MAINLINE, programs={}), [(FAIL, "for an installed QEMU", "install QEMU")]),
    ("QEMU 5.0", Host(kernel=MAINLINE, programs={QEMU: "QEMU emulator version 5.0.1"}), [
        (FAIL, "5.0.1 for carrying SVM nested state", "it leaves an active L2 behind"),
        refusal("5.0.1"), error_code("5.0.1"),
    ]),
    ("QEMU 8.1", Host(kernel=MAINLINE, programs={QEMU: "QEMU emulator version 8.1.5"}), [
        refusal("8.1.5"), error_code("8.1.5"),
    ]),
    ("QEMU 8.2", Host(kernel=MAINLINE, programs={QEMU: "QEMU emulator version 8.2.0"}), [error_code("8.2.0")]),
    ("QEMU 10.1", Host(kernel=MAINLINE, programs={QEMU: "QEMU emulator version 10.1.0"}), [
        error_code("10.1.0", "not known; if not: the error code"),
    ]),
    ("Red Hat's QEMU", Host(kernel=MAINLINE, programs={
        "usr/libexec/qemu-kvm": "QEMU emulator version 6.2.0 (qemu-kvm-6.2.0-53.module+el8.10.0+2055+8eb7870b.4)",
    }), [
        refusal("6.2.0", "not known; if not: up to 8.1"), error_code("6.2.0", "not known"),
    ]),
    ("something else of that name", Host(kernel=MAINLINE, programs={QEMU: "hello"}), [
        (FAIL, "if {root}/usr/bin/qemu-system-x86_64 tells its version", "it says 'hello'"),
    ]),
    ("libvirt 6.0", Host(kernel=MAINLINE, programs={
        QEMU: "QEMU emulator version 11.1.3", "usr/sbin/libvirtd": "/usr/sbin/libvirtd (libvirt) 6.0.0",
    }), [
        (WARN, "if libvirt 6.0.0 reads hooks/qemu.d", "upgrade libvirt to 6.5"),
    ]),
]
# fmt: on


@pytest.mark.parametrize(("host", "expected"), [pytest.param(*row, id=name) for name, *row in HOSTS])
def test_made_up_hosts(host: Host, expected: Lines, tmp_path: Path) -> None:
    answers = [answer for answer in examine(host.survey(tmp_path)) if answer.level is not Level.PASS]
    found = [
        (answer.level, answer.title, answer.hint[: len(hint)])
        for answer, (_, _, hint) in zip(answers, expected, strict=False)
    ]
    assert found == [(level, title.format(root=tmp_path), hint) for level, title, hint in expected]
    assert len(answers) == len(expected), answers[len(expected) :]


def test_what_passed_on_a_good_host_is_said_too(tmp_path: Path) -> None:
    host = Host(kernel=MAINLINE, modules={"kvm_amd": {"nested": "1", "npt": "1", "svm2": "Y"}})
    answers = examine(host.survey(tmp_path))
    assert all((answer.level, answer.hint) == (Level.PASS, "") for answer in answers)
    # Each check was asked, of the kernel and of QEMU more.
    assert {check.title for check in CHECKS} - {answer.title for answer in answers} == {
        "if libvirt {libvirt} reads hooks/qemu.d"  # with its version put in
    }
    assert list(dict.fromkeys(answer.subject for answer in answers)) == [
        "CPU", "KVM", "KERNEL", "FORMAT", "QEMU", "HOOKS",
    ]  # fmt: skip


def test_a_version_that_two_programs_have_is_judged_once(tmp_path: Path) -> None:
    said = "QEMU emulator version 7.2.22"
    host = Host(kernel=MAINLINE, programs={QEMU: said, "usr/libexec/qemu-kvm": said})
    titles = [answer.title for answer in examine(host.survey(tmp_path)) if answer.subject == "QEMU"]
    assert len(titles) == len(set(titles))
    assert f"if {tmp_path}/usr/libexec/qemu-kvm tells its version" in titles


def test_rows_fit_the_report() -> None:
    for check in CHECKS:
        assert len(check.subject) <= 6
        assert not check.hint.endswith("."), check.title
