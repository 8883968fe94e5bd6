# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts of the laboratory, built from distribution packages: a disk, a kernel, and what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .cache import cached
from .inhost import agent
from .mirror import read_mirror

RECIPE = 2  # counted up when the building changes in a way the inputs below do not show
BUILD_SECONDS = 1200.0
DISK_SIZE = "3G"
PACKAGES = (
    "linux-image-cloud-amd64",
    "qemu-system-x86",
    "libvirt-daemon-system",
    "libvirt-clients",
    "python3",
    "python3-libvirt",
    "iproute2",
    "procps",
    "kmod",
    "socat",
    # what save images are compressed with
    "bzip2",
    "lzop",
    "xz-utils",
    "zstd",
)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_INIT = Path(__file__).parent / "lab-init.sh"
_AGENT = Path(agent.__file__)


@dataclass(frozen=True)
class Host:
    """A host by its suites, the first being the release, and the versions of its packages.

    What kernel and QEMU begin with is known: their behaviour differs, and rules and recordings are of these. Of
    libvirt the least version is, because backports move on.
    """

    name: str
    suites: tuple[str, ...]
    kernel: str
    qemu: str
    libvirt: str

    @property
    def release(self) -> str:
        """The release that the others add to."""
        return self.suites[0]


OLD = Host("old", ("bookworm",), "6.1.", "7.2.", "9.0")
MID = Host("mid", ("trixie",), "6.12.", "10.0.", "11.3")
NEW = Host("new", ("trixie", "trixie-backports"), "7.3.", "11.1.", "11.3")
HOSTS = {host.name: host for host in (OLD, MID, NEW)}


@dataclass(frozen=True)
class Rootfs:
    """An unpacked root directory, programs of which run here."""

    path: Path

    def command(self, program: str) -> tuple[list[str], dict[str, str]]:
        """The beginning of a command line that runs the program by its own loader, and what to set for it."""
        libraries = self.path / "usr/lib/x86_64-linux-gnu"
        search = f"{libraries}:{libraries / 'pulseaudio'}"
        loader = self.path / "lib64/ld-linux-x86-64.so.2"
        argv = [str(loader), "--library-path", search, f"{self.path}{program}"]
        return argv, {"QEMU_MODULE_DIR": str(libraries / "qemu")}


@dataclass(frozen=True)
class HostImage:
    """A built host: files in the cache, and the exact versions of kernel, qemu and libvirt in it."""

    host: Host
    directory: Path
    versions: dict[str, str]

    @property
    def disk(self) -> Path:
        """A raw ext4 image, never written to."""
        return self.directory / "disk.ext4"

    @property
    def kernel(self) -> Path:
        """The kernel to boot."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The distribution's own initial ramdisk."""
        return self.directory / "initrd"


def emulator() -> Rootfs:
    """What MID's disk holds, unpacked: it has the QEMU that emulates all the hosts."""
    return Rootfs(host_image(MID).directory / "root")


def host_image(host: Host) -> HostImage:
    """The host's image from the cache, built if it is not there.

    Raises PermissionError without root's rights, LookupError if apt is configured for no Debian archive,
    CalledProcessError or TimeoutExpired if building fails.
    """
    directory = cached(f"{host.name}-{_digest(host)}", lambda target: _build(host, target))
    return HostImage(host, directory, json.loads((directory / "versions.json").read_text()))


def _digest(host: Host) -> str:
    inputs = [str(RECIPE), DISK_SIZE, *host.suites, *PACKAGES, _INIT.read_text(), _AGENT.read_text()]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]


def unpack_packages(host: Host, packages: Iterable[str], root: Path) -> None:
    """Makes a root directory of the host's suites with these packages in it.

    Raises as :func:`host_image` does.
    """
    _bootstrap(host, "--variant=apt", "--format=directory", f"--include={','.join(packages)}", target=str(root))


def download_packages(host: Host, packages: Iterable[str], directory: Path) -> None:
    """Puts these packages of the host's suites, and none that they depend on, into a directory.

    Raises as :func:`host_image` does.
    """
    download = f'cd "{directory}" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -q download {" ".join(packages)}'
    _bootstrap(host, "--variant=custom", "--format=null", f"--customize-hook={download}", target="-")


def _bootstrap(host: Host, *more: str, target: str) -> None:
    if os.geteuid() != 0:
        raise PermissionError("building a host takes root's rights: the owners of its files have to be kept")
    mirror = read_mirror()
    lines = [f"deb {mirror.archive} {suite} main" for suite in (*host.suites, f"{host.release}-updates")]
    if mirror.security is not None:
        lines.append(f"deb {mirror.security} {host.release}-security main")
    options = ['--aptopt=APT::Install-Recommends "false"']
    if host.suites[-1] != host.release:
        # Pinning single packages fails on their dependencies; and for a host without backports this would hide the
        # security archive, which is a release of its own to apt.
        options.append(f'--aptopt=APT::Default-Release "{host.suites[-1]}"')
    run_tool(
        ["mmdebstrap", "--mode=root", f"--keyring={KEYRING}", *options, *more, host.release, target, *lines]
    )  # fmt: skip


def run_tool(argv: list[str]) -> str:
    """What a program prints; raises CalledProcessError with what it said at last, or TimeoutExpired."""
    try:
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
    except subprocess.CalledProcessError as failed:
        failed.add_note(f"{failed.stderr[-2000:]}")
        raise
    return done.stdout


def _build(host: Host, target: Path) -> None:
    root = target / "root"
    unpack_packages(host, PACKAGES, root)
    _install(_INIT, root / "lab-init")
    _install(_AGENT, root / "lab-agent.py")
    kernel = next((root / "boot").glob("vmlinuz-*"))
    release = kernel.name.removeprefix("vmlinuz-")
    (target / "vmlinuz").write_bytes(kernel.read_bytes())
    (target / "initrd").write_bytes((root / f"boot/initrd.img-{release}").read_bytes())
    versions = {"kernel": release}
    for name, package in (("qemu", "qemu-system-x86"), ("libvirt", "libvirt-daemon")):
        versions[name] = run_tool(
            ["dpkg-query", f"--admindir={root / 'var/lib/dpkg'}", "-W", "-f=${Version}", package]
        )
    (target / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
    run_tool(["mkfs.ext4", "-q", "-d", str(root), str(target / "disk.ext4"), DISK_SIZE])
    if host != MID:
        shutil.rmtree(root)


def _install(source: Path, destination: Path) -> None:
    destination.write_bytes(source.read_bytes())
    destination.chmod(0o755)
