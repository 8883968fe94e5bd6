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
PACKAGES = ("gcc", "libc6-dev", "make", "xz-utils")
# All but the module of AMD is the stock kernel's own.
_ONLY_AMD = ("CONFIG_KVM_X86=n", "CONFIG_KVM_INTEL=n")
# objtool wants /proc.
_CHROOT = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
_LOAD = f'modprobe -r kvm_amd && xz --check=crc32 -c {MODULE} >"$(modinfo -n kvm_amd)" && modprobe kvm_amd nested=1'


@dataclass(frozen=True)
class Svm2Host:
    """A host by the stock one that it is built on.

    :param tests: those of the kernel's own selftests of nested SVM that pass with the stock kernel; the others want
        what the emulated CPU has not, as NRIPS, LBRV, TSC scaling
    """

    name: str
    stock: Host
    tests: tuple[str, ...]

    @property
    def source(self) -> str:
        """The version in the name of its kernel's source package."""
        return self.stock.kernel.removesuffix(".")


_TESTS = ("state_test", "smm_test", "svm_vmcall_test", "svm_int_ctl_test", "svm_nested_shutdown_test")
_NEW_TESTS = (
    *("nested_invalid_cr3_test", "nested_set_state_test", "nested_tsc_adjust_test", "svm_nested_clear_efer_svme"),
    *("svm_nested_pat_test", "svm_nested_vmcb12_gpa"),
)
MID_SVM2 = Svm2Host("mid-svm2", MID, _TESTS)
NEW_SVM2 = Svm2Host("new-svm2", NEW, (*_TESTS, *_NEW_TESTS))
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
    key = f"{host.name}-{_digest(image.versions['kernel'], *(source.read_text() for source in SOURCES))}"
    return cached(key, lambda target: _build(host, image, target)) / MODULE


def kernel_tests(host: Svm2Host) -> dict[str, bytes]:
    """The kernel's own selftests by name, built from the same source package. Raises as :func:`svm2_module` does."""
    release = host_image(host.stock).versions["kernel"]
    key = f"{host.name}-tests-{_digest(release, *host.tests)}"
    directory = cached(key, lambda target: _build_tests(host, release, target))
    return {name: (directory / name).read_bytes() for name in host.tests}


def _digest(*inputs: str) -> str:
    return hashlib.sha256("\0".join((str(RECIPE), *PACKAGES, *inputs)).encode()).hexdigest()[:16]


def _root(host: Svm2Host, release: str) -> Path:
    """An unpacked root directory with a compiler, and the headers and the source of the host's kernel."""
    packages = (*PACKAGES, f"linux-headers-{release}", f"linux-source-{host.source}")
    key = f"{host.name}-root-{_digest(release)}"
    return cached(key, lambda empty: unpack_packages(host.stock, packages, empty / "root")) / "root"


def _build(host: Svm2Host, image: HostImage, target: Path) -> None:
    """Builds the module against the headers of the kernel, of whose source only KVM's directories are unpacked."""
    release = image.versions["kernel"]
    root = _root(host, release)
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


def _build_tests(host: Svm2Host, release: str, target: Path) -> None:
    root = _root(host, release)
    source, top = root / "usr/src", f"linux-source-{host.source}"
    run_tool(["tar", "-xf", str(source / f"{top}.tar.xz"), "-C", str(source), f"{top}/tools", f"{top}/scripts"])
    kvm = f"/usr/src/{top}/tools/testing/selftests/kvm"
    # The directory had another name before.
    x86 = next(name for name in ("x86", "x86_64") if (root / kvm.lstrip("/") / name).is_dir())
    built = [f"/tmp/kvm/{x86}/{name}" for name in host.tests]
    # libvfio, and with it libuuid, is of use to none of these.
    options = [f"ARCH={x86}", "OUTPUT=/tmp/kvm", "LIBVFIO_C=", "LDLIBS=-ldl"]
    run_tool(["chroot", str(root), "make", "-s", "-j2", "-C", kvm, *options, *built])
    for path in built:
        run_tool(["chroot", str(root), "strip", path])
        (target / Path(path).name).write_bytes((root / path.lstrip("/")).read_bytes())
