# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts whose kvm_amd speaks svm2: a stock host with a module from its kernel's source and examples/kernel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from .cache import cached
from .emulator import EmulatedHost
from .hosts import HOSTS, MID, NEW, Host, HostImage, emulator, host_image, run_tool, unpack_packages

RECIPE = 1  # counted up when the building changes in a way the inputs below do not show
KERNEL = Path(__file__).parents[2] / "examples/kernel"
APPLY = KERNEL / "apply"
SOURCES = (APPLY, KERNEL / "svm2.c", KERNEL / "svm2.h")
LOAD_SECONDS = 60.0
MODULE = "kvm-amd.ko"
PACKAGES = ("gcc", "make", "xz-utils")
# All but the module of AMD is the stock kernel's own.
_ONLY_AMD = ("CONFIG_KVM_X86=n", "CONFIG_KVM_INTEL=n")
# objtool wants /proc.
_CHROOT = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
_LOAD = f'modprobe -r kvm_amd && xz --check=crc32 -c {MODULE} >"$(modinfo -n kvm_amd)" && modprobe kvm_amd nested=1'


@dataclass(frozen=True)
class Svm2Host:
    """A host by the stock one that it is built on."""

    name: str
    stock: Host

    @property
    def source(self) -> str:
        """The version in the name of its kernel's source package."""
        return self.stock.kernel.removesuffix(".")


MID_SVM2 = Svm2Host("mid-svm2", MID)
NEW_SVM2 = Svm2Host("new-svm2", NEW)
SVM2_HOSTS = {host.name: host for host in (MID_SVM2, NEW_SVM2)}


class EmulatedSvm2Host(EmulatedHost):
    """A booted host with that module in the place of the stock one. Use as a context manager."""

    def __init__(self, host: Svm2Host) -> None:
        self._module = svm2_module(host).read_bytes()
        image = host_image(host.stock)
        super().__init__(replace(image, host=replace(host.stock, name=host.name)), emulator())

    def _boot(self) -> None:
        super()._boot()
        self.run(["sh", "-c", _LOAD], {MODULE: self._module}, LOAD_SECONDS)


def boot(name: str) -> EmulatedHost:
    """The host of that name, stock or svm2, booted. Raises as :func:`svm2_module` does."""
    if name in HOSTS:
        return EmulatedHost(host_image(HOSTS[name]), emulator())
    return EmulatedSvm2Host(SVM2_HOSTS[name])


def svm2_module(host: Svm2Host) -> Path:
    """The module for the host's kernel, from the cache, built if it is not there.

    Raises as :func:`tests.lab.hosts.host_image` does; CalledProcessError too where the archive no longer has the
    headers of the kernel in the host's image: that image has to be built anew.
    """
    image = host_image(host.stock)
    directory = cached(f"{host.name}-{_digest(image)}", lambda target: _build(host, image, target))
    return directory / MODULE


def _digest(image: HostImage) -> str:
    inputs = [str(RECIPE), image.versions["kernel"], *(source.read_text() for source in SOURCES)]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]


def _build(host: Svm2Host, image: HostImage, target: Path) -> None:
    """Builds the module against the headers of the kernel, of whose source only KVM's directories are unpacked."""
    release = image.versions["kernel"]
    packages = (*PACKAGES, f"linux-headers-{release}", f"linux-source-{host.source}")
    made = cached(f"{host.name}-root-{release}", lambda empty: unpack_packages(host.stock, packages, empty / "root"))
    root = made / "root"
    common = root / "usr/src" / f"linux-headers-{release.removesuffix('-cloud-amd64')}-common"
    tarball = root / f"usr/src/linux-source-{host.source}.tar.xz"
    top = f"linux-source-{host.source}"
    kvm = [f"{top}/arch/x86/kvm", f"{top}/virt"]
    run_tool(["tar", "-xf", str(tarball), "-C", str(common), "--strip-components=1", *kvm])
    run_tool([str(APPLY), str(common)])
    inside = Path("/") / common.relative_to(root) / "arch/x86/kvm"
    make = ["make", "-s", "-j2", "-C", f"/usr/src/linux-headers-{release}", f"M={inside}", *_ONLY_AMD, "modules"]
    within = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", _CHROOT, str(root)]
    run_tool([*within, *make])
    run_tool(["chroot", str(root), "strip", "--strip-debug", str(inside / MODULE)])
    (target / MODULE).write_bytes((common / "arch/x86/kvm" / MODULE).read_bytes())
