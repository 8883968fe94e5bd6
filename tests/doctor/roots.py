# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts made up of a few files under a directory, as the doctor sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qmpfilter.doctor.gather import Device, gather
from qmpfilter.doctor.survey import Survey
from qmpfilter.svm.legacy import SIZE_L2
from qmpfilter.verdict.cpuid import Cpuid, CpuidRow

# 48 bits of physical address; SVM.
CPUID = Cpuid(
    (
        CpuidRow(0x8000_0000, 0, 0, 0x8000_0021, 0, 0, 0),
        CpuidRow(0x8000_0001, 0, 0, 0, 0, 1 << 2, 0),
        CpuidRow(0x8000_0008, 0, 0, 0x3030, 0, 0, 0),
    )
)
NESTING = Device(None, SIZE_L2, 0xFF, CPUID)
CPUINFO = "processor\t: {number}\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags} lm\n"
CPUINFO_ARM = "processor\t: {number}\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n"
PROGRAM = "#!/bin/sh\n[ \"$1\" = --version ] || exit 9\ncat <<'end'\n{said}\nend\n"

DEBIAN = (
    "6.1.0-56-cloud-amd64",
    "Linux version 6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, "
    "GNU ld (GNU Binutils for Debian) 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)",
)
UBUNTU = (
    "6.8.0-45-generic",
    "Linux version 6.8.0-45-generic (buildd@lcy02-amd64-075) (x86_64-linux-gnu-gcc-13 (Ubuntu 13.2.0-23ubuntu4) "
    "13.2.0, GNU ld (GNU Binutils for Ubuntu) 2.42) #45-Ubuntu SMP PREEMPT_DYNAMIC Fri Aug 30 12:02:04 UTC 2024",
)
RHEL = (
    "5.14.0-427.13.1.el9_4.x86_64",
    "Linux version 5.14.0-427.13.1.el9_4.x86_64 (mockbuild@x86-064-01.build.eng.bos.redhat.com) (gcc (GCC) 11.4.1, "
    "GNU ld version 2.35.2-43.el9) #1 SMP PREEMPT_DYNAMIC Wed Apr 10 10:29:16 EDT 2024",
)
PROXMOX = (
    "6.8.12-1-pve",
    "Linux version 6.8.12-1-pve (build@proxmox) (gcc (Debian 12.2.0-14) 12.2.0, GNU ld (GNU Binutils) 2.40) "
    "#1 SMP PREEMPT_DYNAMIC PMX 6.8.12-1 (2024-08-05T16:17Z)",
)
MAINLINE = (
    "7.2.12",
    "Linux version 7.2.12 (me@home) (gcc 15.2.0) #3 SMP PREEMPT_DYNAMIC Sun Nov 15 10:00:00 UTC 2026",
)

QEMU = "usr/bin/qemu-system-x86_64"


@dataclass(frozen=True)
class Host:
    """A good host, but for what is given."""

    kernel: tuple[str, str] | None = DEBIAN
    signature: str | None = None
    vendor: str | None = "AuthenticAMD"
    flags: str = "svm npt"
    modules: dict[str, dict[str, str]] = field(
        default_factory=lambda: {"kvm": {"tdp_mmu": "Y"}, "kvm_amd": {"nested": "1", "npt": "Y"}}
    )
    device: Device = NESTING
    programs: dict[str, str] = field(
        default_factory=lambda: {
            QEMU: "QEMU emulator version 10.2.2 (Debian 1:10.2.2+ds-1)\nCopyright (c) 2003-2026",
            "usr/sbin/libvirtd": "/usr/sbin/libvirtd (libvirt) 11.3.0",
        }
    )

    def survey(self, root: Path) -> Survey:
        """Write it below `root` and look at it."""
        files = {}
        if self.kernel is not None:
            files["proc/sys/kernel/osrelease"], files["proc/version"] = self.kernel
        if self.signature is not None:
            files["proc/version_signature"] = self.signature
        if self.vendor is not None:
            cpuinfo = CPUINFO if self.vendor else CPUINFO_ARM
            files["proc/cpuinfo"] = "\n".join(
                cpuinfo.format(number=number, vendor=self.vendor, flags=self.flags) for number in range(2)
            )
        for module, parameters in self.modules.items():
            (root / "sys/module" / module).mkdir(parents=True)
            for name, value in parameters.items():
                files[f"sys/module/{module}/parameters/{name}"] = value
        for path, content in files.items():
            _write(root / path, f"{content}\n")
        for path, said in self.programs.items():
            _write(root / path, PROGRAM.format(said=said)).chmod(0o755)
        return gather(root, device=lambda: self.device)


def _write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path
