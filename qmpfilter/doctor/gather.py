# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at a host: its files under a root directory, /dev/kvm, and what its programs say of themselves.

Nothing is changed and nothing loaded. What cannot be read is left unknown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from qmpfilter.doctor.programs import ask_version, present
from qmpfilter.doctor.survey import Survey
from qmpfilter.errors import PolicyError
from qmpfilter.kvm.device import Kvm, KvmError
from qmpfilter.kvm.uapi import Cap
from qmpfilter.svm.legacy import SIZE_L2
from qmpfilter.verdict.cpuid import Cpuid, CpuidRow
from qmpfilter.verdict.facts import HostFacts, QemuBinary
from qmpfilter.verdict.version import Version, kernel_version

__all__ = ["SVM2_PARAMETER", "Device", "ask_kvm", "gather"]

SVM2_PARAMETER: Final = "svm2"
"""The parameter of a changed kvm_amd that says, with Y, that it takes native svm2. No stock kernel has it."""

_MODULES: Final = ("kvm", "kvm_amd", "kvm_intel")
# Debian and most others, what was installed by hand, and where Red Hat hides it.
_QEMU_PROGRAMS: Final = (
    "usr/bin/qemu-system-x86_64",
    "usr/libexec/qemu-kvm",
    "usr/bin/qemu-kvm",
    "usr/local/bin/qemu-system-x86_64",
)
_LIBVIRT_PROGRAMS: Final = ("usr/sbin/virtqemud", "usr/sbin/libvirtd")

_QEMU_VERSION = re.compile(r"QEMU emulator version (.+)")
_LIBVIRT_VERSION = re.compile(r"\(libvirt\) (.+)")
# After the compiler, Debian's and Proxmox' packages: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)".
_PACKAGE = re.compile(r"#\d+ .*\b(?:Debian|PMX) (\S+) \(")
# /proc/version_signature, which only Ubuntu has: "Ubuntu 6.8.0-45.45-generic 6.8.12".
_SIGNATURE = re.compile(r"Ubuntu (\S+) ")


@dataclass(frozen=True, slots=True)
class Device:
    """What /dev/kvm answers.

    :param error: errno of opening it, or of the first question it did not answer; None if all were answered
    """

    error: int | None = None
    nested_state_size: int | None = None
    quirks: int | None = None
    supported_cpuid: Cpuid | None = None


def ask_kvm() -> Device:
    """Ask this host's /dev/kvm; no virtual machine is made.

    :raises HostError: it speaks another version of KVM's API
    """
    try:
        # Kvm() tells a person what is wrong; the checks need to know which error it was.
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        with Kvm() as kvm:
            return Device(
                None,
                kvm.check_extension(Cap.NESTED_STATE),
                kvm.check_extension(Cap.DISABLE_QUIRKS2),
                Cpuid(tuple(CpuidRow(**asdict(row)) for row in kvm.supported_cpuid())),
            )
    except (OSError, KvmError) as error:
        return Device(error.errno)


def gather(
    root: Path = Path("/"),
    *,
    device: Callable[[], Device] = ask_kvm,
    qemu: Sequence[Path] = (),
) -> Survey:
    """Look at a host.

    :param root: where its proc, sys and usr are
    :param device: asks its /dev/kvm
    :param qemu: QEMU programs to ask before those in the usual places
    """
    release = _text(root / "proc/sys/kernel/osrelease")
    banner = _text(root / "proc/version") or ""
    cpuinfo = _text(root / "proc/cpuinfo")
    cpu = _first_processor(cpuinfo or "")
    modules = [module for module in _MODULES if (root / "sys/module" / module).is_dir()]
    parameters = {module: _parameters(root / "sys/module" / module / "parameters") for module in modules}
    kvm = device()
    said = {
        str(path): ask_version(path) for path in present([*qemu, *(root / program for program in _QEMU_PROGRAMS)])
    }
    facts = HostFacts(
        kernel_release=release,
        kernel=None if release is None else kernel_version(release, banner),
        kernel_package=_package(banner, _text(root / "proc/version_signature") or ""),
        parameters=parameters,
        nested_state_size=kvm.nested_state_size,
        quirks=kvm.quirks,
        supported_cpuid=kvm.supported_cpuid,
        qemu=tuple(
            QemuBinary(path, _version(_QEMU_VERSION, text) if answered else None)
            for path, (answered, text) in said.items()
        ),
        formats=_formats(kvm, parameters.get("kvm_amd", {})),
    )
    return Survey(
        facts,
        vendor=None if cpuinfo is None else cpu.get("vendor_id", ""),
        cpu_flags=frozenset(cpu.get("flags", "").split()),
        modules=frozenset(modules),
        device_error=kvm.error,
        qemu_said={path: f"it says {text!r}" if answered else text for path, (answered, text) in said.items()},
        libvirt=_libvirt(root / program for program in _LIBVIRT_PROGRAMS),
    )


def _formats(kvm: Device, kvm_amd: Mapping[str, str]) -> tuple[str, ...]:
    """Which nested state KVM takes. Each kernel from 5.8 on that loads legacy state at all passes over the annex:
    it reads less of the page (svm_set_nested_state copies 0x100 + 0x408 bytes of it in 5.8, 0x400 + 0x2e8 in 7.3).
    """
    if kvm.nested_state_size != SIZE_L2 or kvm.supported_cpuid is None or not kvm.supported_cpuid.has("SVM"):
        return ()
    native = kvm_amd.get(SVM2_PARAMETER) == "Y"
    return ("legacy", "annex", "svm2") if native else ("legacy", "annex")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _parameters(directory: Path) -> dict[str, str]:
    """All that can be read: a few parameters are for root alone, or for nobody."""
    names = sorted(directory.iterdir()) if directory.is_dir() else []
    return {path.name: text for path in names if (text := _text(path)) is not None}


def _first_processor(cpuinfo: str) -> dict[str, str]:
    lines = (line.partition(":") for line in cpuinfo.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _package(banner: str, signature: str) -> str | None:
    found = _PACKAGE.search(banner) or _SIGNATURE.match(signature)
    return found[1] if found else None


def _libvirt(programs: Iterable[Path]) -> Version | None:
    for program in present(list(programs)):
        answered, text = ask_version(program)
        if answered and (version := _version(_LIBVIRT_VERSION, text)) is not None:
            return version
    return None


def _version(pattern: re.Pattern[str], text: str) -> Version | None:
    found = pattern.search(text)
    if found is None:
        return None
    try:
        return Version.parse(found[1])
    except PolicyError:
        return None
