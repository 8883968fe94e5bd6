# SPDX-License-Identifier: GPL-2.0-or-later
"""Records a libvirt save image of the L1 guest: ``python3 -m inhost.saveimage SPEC.json``.

The specification holds ``vcpus``, ``guest`` (its command line), ``save_format`` and ``symbols``.  Leaves ``save``,
``truth.json`` and ``facts.json`` in the directory ``out``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .console import read_console
from .modes import Untimely
from .truth import read_truth
from .waiting import wait_until

DAEMON_SECONDS = 120.0
PROGRESS_SECONDS = 60.0
VIRSH_SECONDS = 120.0
ATTEMPTS = 8
DOMAIN = "nested"
QEMU_CONFIGURATION = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
save_image_format = "{save_format}"
"""
DOMAIN_XML = """\
<domain type='kvm'>
  <name>nested</name>
  <uuid>6e657374-6564-4000-8000-000000000001</uuid>
  <memory unit='MiB'>32</memory>
  <vcpu>{vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{directory}/l1.elf</kernel>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough' migratable='on'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{directory}/console' append='on'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class DomainMonitor:
    """The monitor of a libvirt domain, reached through virsh."""

    def command(self, name: str, **arguments: Any) -> Any:
        """The return value of a QMP command; raises CalledProcessError."""
        request = {"execute": name, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        return json.loads(virsh("qemu-monitor-command", DOMAIN, json.dumps(request)))["return"]

    def human(self, line: str) -> str:
        """The output of a human monitor command; raises CalledProcessError."""
        return virsh("qemu-monitor-command", "--hmp", DOMAIN, line)


def virsh(*words: str) -> str:
    """The output of a virsh command; raises CalledProcessError with what virsh said as a note."""
    try:
        done = subprocess.run(
            ["virsh", "-q", "-c", "qemu:///system", *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=VIRSH_SECONDS,
        )
    except subprocess.CalledProcessError as failed:
        failed.add_note(failed.stderr)
        raise
    return done.stdout


@contextlib.contextmanager
def libvirtd(save_format: str) -> Iterator[None]:
    """A libvirt daemon that writes save images of the format, for the time of the block."""
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONFIGURATION.format(save_format=save_format))
    with Path("/run/libvirtd.log").open("wb") as log:
        daemon = subprocess.Popen(["libvirtd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def answers() -> bool:
        if daemon.poll() is not None:
            raise RuntimeError(f"libvirtd ended: {Path('/run/libvirtd.log').read_text()[-1000:]}")
        return subprocess.run(["virsh", "-q", "version"], capture_output=True, timeout=VIRSH_SECONDS).returncode == 0

    try:
        wait_until(answers, DAEMON_SECONDS, "an answer of libvirtd", 0.5)
        yield
    finally:
        daemon.terminate()
        daemon.wait(DAEMON_SECONDS)


class SaveRecorder:
    """Saves a domain that runs the guest, and proves that the image restores."""

    def __init__(self, spec: dict[str, Any], directory: Path) -> None:
        self._modes: str = spec["vcpus"]
        self._symbols: dict[str, int] = spec["symbols"]
        self._cmdline: str = spec["guest"]
        self._directory = directory
        self._console = directory / "console"

    def record(self, out: Path) -> None:
        """Writes the image and the truth to ``out``; raises Untimely after too many attempts."""
        self._console.write_text("")
        xml = self._directory / "domain.xml"
        xml.write_text(DOMAIN_XML.format(vcpus=len(self._modes), directory=self._directory, cmdline=self._cmdline))
        virsh("create", str(xml))
        try:
            self._wait_for_more()
            truth = self._stop_in_l2()
            image = out / "save"
            virsh("save", DOMAIN, str(image))
            virsh("restore", str(image), "--running")
            self._wait_for_more()
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                virsh("destroy", DOMAIN)
        (out / "truth.json").write_text(json.dumps(truth))
        (out / "facts.json").write_text(json.dumps({"machine": self._machine_type}))

    def _stop_in_l2(self) -> dict[str, Any]:
        monitor = DomainMonitor()
        untimely: Untimely | None = None
        for _ in range(ATTEMPTS):
            virsh("suspend", DOMAIN)
            try:
                truth = read_truth(monitor, self._directory, self._modes, self._symbols)
            except Untimely as early:
                untimely = early
                virsh("resume", DOMAIN)
            else:
                machine = monitor.command("qom-get", path="/machine", property="type")
                self._machine_type = str(machine).removesuffix("-machine")
                return truth
        raise Untimely(f"in none of {ATTEMPTS} attempts: {untimely}")

    def _wait_for_more(self) -> None:
        """Waits until every vCPU has printed a round that it has not printed before."""
        runs = [index for index, mode in enumerate(self._modes) if mode != "-"]
        before = self._rounds()

        def reached() -> bool:
            now = self._rounds()
            return all(now.get(index, [0])[-1] > before.get(index, [0])[-1] for index in runs)

        wait_until(reached, PROGRESS_SECONDS, f"progress of the guest after rounds {before}", 0.2)

    def _rounds(self) -> dict[int, list[int]]:
        return read_console(self._console.read_text(errors="replace"), self._symbols["contexts"]).rounds


def main(specification: Path) -> None:
    """Records what the file specifies."""
    spec = json.loads(specification.read_text())
    job = specification.parent.absolute()
    with libvirtd(spec["save_format"]):
        SaveRecorder(spec, job).record(job / "out")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
