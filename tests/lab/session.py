# SPDX-License-Identifier: GPL-2.0-or-later
"""Session daemons of real libvirts on this machine, each of another release if wanted, and virsh to use them.

They run as one unprivileged user and share the network, so a filter fits between them at another loopback address.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from .hosts import Host, host_image
from .inhost.waiting import wait_until
from .package import unpack_package

SECONDS: Final = 60.0
# Debian's libvirt-qemu; any user but root will do, because root's daemon is the system's.
_USER: Final = (64055, 65534)
_SCRIPT: Final = Path(__file__).parent / "session.sh"
_QUOTED: Final = 4000
_HOOK: Final = Path(__file__).resolve().parents[2] / "hooks/qemu"
_PACKAGE: Final = "package"


GUEST = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>guest</name>
  <memory unit='MiB'>64</memory><vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator><serial type='null'/><memballoon model='none'/>{disk}
  </devices>{more}
</domain>
"""
QMP: Final = "/tmp/guest.qmp"
"""Every session has a directory /tmp of its own."""
_DISK: Final = "/tmp/guest.disk"
_WITH_DISK: Final = f"""
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{_DISK}'/><target dev='vda' bus='virtio'/>
    </disk>"""
# What cannot be compressed takes time where bandwidth is limited.
_FULL: Final = f"""
  <qemu:commandline>
    <qemu:arg value='-device'/><qemu:arg value='loader,addr=0x1000000,file=/shared/noise,force-raw=on'/>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:{QMP},server=on,wait=off'/>
  </qemu:commandline>"""
_NOISE: Final = 16 << 20


class VirshError(Exception):
    """virsh ended with another status than 0; the text is what it said."""


class SessionDaemon:
    """A libvirtd and its guests. Use as a context manager: all end with the block.

    :param host: whose disk has the programs
    :param shared: a directory that all sessions of a test have as ``/shared``
    :param network: the name of a network namespace for it
    :param qemu: what stands in its qemu.conf
    :param hook: the settings of qmpfilter's hook, None to have no hook
    """

    def __init__(
        self,
        host: Host,
        shared: Path,
        name: str,
        network: str | None = None,
        qemu: str = "",
        hook: str | None = None,
    ) -> None:
        self.name = name
        self.network = network
        self._qemu = qemu
        self._hook = hook
        self.host = host
        self.directory = shared / name
        self._shared = shared
        self._stack = ExitStack()

    def set_hook(self, settings: str) -> None:
        """Other settings of the hook."""
        (self.directory / ".config/qmpfilter/hook.conf").write_text(settings)

    @property
    def uri(self) -> str:
        """How virsh, and the other sessions, connect to it."""
        return f"qemu+unix:///session?socket=/shared/{self.name}/run/libvirt/libvirt-sock"

    def __enter__(self) -> SessionDaemon:
        disk = host_image(self.host).disk
        for part in ("run", "config/libvirt", "cache", "data"):
            (self.directory / part).mkdir(parents=True)
        # Machines without DMI have no UUID of their own, and two daemons on one host would have the same.
        settings = f'host_uuid = "{uuid.uuid4()}"\nauth_unix_rw = "none"\n'
        (self.directory / "config/libvirt/libvirtd.conf").write_text(settings)
        (self.directory / "config/libvirt/qemu.conf").write_text(self._qemu)
        if self._hook is not None:
            (self.directory / "hooks").mkdir()
            shutil.copy(_HOOK, self.directory / "hooks/50-qmpfilter")
            (self.directory / ".config/qmpfilter").mkdir(parents=True)
            self.set_hook(self._hook)
        for path in (self._shared, self.directory, *self.directory.rglob("*")):
            os.chown(path, *_USER)
        with ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"session-{self.name}-"))
            log = stack.enter_context((self.directory / "output").open("wb"))
            user = ":".join(map(str, _USER))
            argv = [str(_SCRIPT), str(disk), str(self._shared), scratch, self.name, user]
            within = [] if self.network is None else ["ip", "netns", "exec", self.network]
            process = subprocess.Popen(
                [*within, "unshare", "--mount", "--pid", "--fork", *argv],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            stack.callback(process.wait, SECONDS)
            self._process = process
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            wait_until(lambda: self._alive() and children.read_text() != "", SECONDS, "the namespaces", 0.01)
            self._inside = int(children.read_text().split()[0])
            # The first of its PID namespace: all in it end with it.
            stack.callback(os.kill, self._inside, signal.SIGKILL)
            socket = self.directory / "run/libvirt/libvirt-sock"
            wait_until(lambda: self._alive() and socket.exists(), SECONDS, f"libvirt {self.name}", 0.05)
            self._root = f"{scratch}/root"
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _alive(self) -> bool:
        if self._process.poll() is not None:
            said = (self.directory / "output").read_text(errors="replace")[-_QUOTED:]
            raise VirshError(f"libvirt {self.name} ended: {said}")
        return True

    def virsh(self, *argv: str) -> str:
        """What virsh says.

        Raises VirshError.
        """
        done = self._run(["virsh", "--quiet", "-c", self.uri, *argv])
        if done.returncode:
            raise VirshError(done.stderr.strip() or done.stdout.strip())
        return done.stdout.strip()

    def shell(self, script: str) -> str:
        """What a script prints there."""
        done = self._run(["sh", "-c", script])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self, domain: str) -> str:
        """The state of a domain in virsh's words, "absent" if there is none."""
        try:
            return self.virsh("domstate", domain)
        except VirshError as error:
            if "failed to get domain" in str(error):
                return "absent"
            raise

    def qmpfilter(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """The command, beside this libvirt, which is its default; takes a shared directory with the package."""
        return self._run([*self._qmpfilter, *argv])

    @contextmanager
    def running_qmpfilter(self, *argv: str) -> Iterator[Started]:
        """The same, while it runs; it is killed if it has not ended with the block."""
        with subprocess.Popen(
            [*self._within, *self._qmpfilter, *argv],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            try:
                yield Started(process)
            finally:
                process.kill()

    @contextmanager
    def running_beside(self, capability: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
        """The command with this machine's own programs, as the session's user with one of root's capabilities, in the
        session's network; it is killed with the block. Takes a shared directory with the package."""
        assert self.network is not None
        user, group = _USER
        rights = ["--clear-groups", f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"]
        settings = ["-i", "PATH=/usr/bin:/bin", f"HOME={self.directory}", f"PYTHONPATH={self._shared / _PACKAGE}"]
        with subprocess.Popen(
            [
                "ip", "netns", "exec", self.network, "setpriv", f"--reuid={user}", f"--regid={group}", *rights,
                "env", *settings, "python3", "-m", "qmpfilter", *argv,
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, cwd="/",
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    @property
    def _qmpfilter(self) -> list[str]:
        settings = [f"LIBVIRT_DEFAULT_URI={self.uri}", f"PYTHONPATH=/shared/{_PACKAGE}"]
        return ["env", *settings, "python3", "-m", "qmpfilter"]

    @property
    def _within(self) -> list[str]:
        enter = ["nsenter", "--mount", "--pid", f"--target={self._inside}"]
        user = "{}:{}".format(*_USER)
        settings = ["env", "-i", "PATH=/usr/bin:/bin", "LC_ALL=C", f"HOME=/shared/{self.name}"]
        return [*enter, "chroot", f"--userspec={user}", self._root, *settings]

    def _run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._within, *argv], capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )


class Started:
    """A program that runs in a session.

    :ivar process: who waits for it there
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def signal(self, number: signal.Signals) -> None:
        """To the program itself."""
        pid = self.process.pid
        os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]), number)


def provide_package(shared: Path) -> None:
    """Put the package where sessions find it; what its modules compile to is kept there for all of them."""
    unpack_package(shared / _PACKAGE)
    for path in (shared / _PACKAGE, *(shared / _PACKAGE).rglob("*")):
        os.chown(path, *_USER)


def shared_directory(directories: pytest.TempPathFactory) -> Path:
    """A directory for the sessions of a test, which another user can enter, with the XML of guests in it."""
    shared = directories.mktemp("shared")
    for directory in (shared, *shared.parents):
        if directory.stat().st_mode & 0o005 == 0o005:
            break
        directory.chmod(0o755)
    (shared / "guest.xml").write_text(GUEST.format(disk="", more=""))
    (shared / "full.xml").write_text(GUEST.format(disk="", more=_FULL))
    (shared / "disk.xml").write_text(GUEST.format(disk=_WITH_DISK, more=""))
    return shared


@contextmanager
def guest_with_disk(here: SessionDaemon, there: SessionDaemon) -> Iterator[None]:
    """A guest that runs at one session, with a disk full of noise, and room for that at the other."""
    here.shell(f"head -c 8M /dev/urandom >{_DISK}")
    there.shell(f"truncate -s 0 {_DISK}; truncate -s 8M {_DISK}")
    with guest_of(here, there, kind="disk"):
        yield


def assert_same_disk(*daemons: SessionDaemon) -> None:
    """What is in the guest's disk is the same everywhere."""
    assert len({daemon.shell(f"sha256sum {_DISK}") for daemon in daemons}) == 1


@contextmanager
def guest_of(first: SessionDaemon, *others: SessionDaemon, kind: str = "guest") -> Iterator[None]:
    """A guest that runs at the first; what is left of it goes, wherever it is.

    :param kind: "full": a quarter of its memory is noise, which is never sent in a moment, and it has a QMP socket;
        "disk": it has one, see :func:`guest_with_disk`
    """
    if kind == "full":
        (first.directory.parent / "noise").write_bytes(os.urandom(_NOISE))
    first.virsh("create", f"/shared/{kind}.xml")
    try:
        yield
    finally:
        for daemon in (first, *others):
            if daemon.state("guest") in ("running", "paused"):
                daemon.virsh("destroy", "guest")
            if daemon.state("guest") == "shut off":
                daemon.virsh("undefine", "guest")
