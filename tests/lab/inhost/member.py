# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes an emulated host a member of a cluster, with a libvirt to migrate to: ``python3 -m inhost.member SPEC.json``.

QEMU waits for migrations where no other host reaches it, so that none comes past a filter unseen.

The specification has the host's ``name``, the addresses of all members by name as ``addresses``, and ``wires``: by
the hardware address of the card at this end, the addresses at this and at the other end.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from .waiting import wait_until

SECONDS = 400.0
DAEMON_CONFIGURATION = """\
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
auth_unix_rw = "none"
host_uuid = "{uuid}"
"""
QEMU_CONFIGURATION = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
migration_address = "127.0.0.2"
"""
# libvirt looks for hooks when it starts, and in a directory that has one each time anew.
HOOKS = Path("/etc/libvirt/hooks/qemu.d")
_UUID = "6c616200-6c61-4000-8000-{:012x}"


def join(spec: dict[str, Any]) -> None:
    """Raises CalledProcessError, TimeoutError."""
    names = list(spec["addresses"])
    lines = ["127.0.0.1 localhost", *(f"{there} {name}" for name, there in spec["addresses"].items())]
    Path("/etc/hosts").write_text("".join(f"{line}\n" for line in lines))
    socket.sethostname(spec["name"])
    _connect(spec["wires"])
    # Machines without DMI have no UUID of their own, and a host refuses a guest from one of the same.
    uuid = _UUID.format(names.index(spec["name"]))
    Path("/etc/libvirt/libvirtd.conf").write_text(DAEMON_CONFIGURATION.format(uuid=uuid))
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONFIGURATION)
    HOOKS.mkdir(parents=True, exist_ok=True)
    HOOKS.joinpath("00-nothing").symlink_to("/bin/true")
    subprocess.run(["libvirtd", "--listen", "--daemon"], check=True, timeout=SECONDS)
    wait_until(_answers, SECONDS, "an answer of libvirtd", 0.5)


def _connect(wires: dict[str, list[str]]) -> None:
    subprocess.run(["modprobe", "virtio_net"], check=True, timeout=SECONDS)
    wait_until(lambda: wires.keys() <= _cards().keys(), SECONDS, "the network cards", 0.2)
    cards = _cards()
    for card, (own, peer) in wires.items():
        ip = ["ip", "-batch", "-"]
        lines = f"address add {own} peer {peer}/32 dev {cards[card]}\nlink set {cards[card]} up\n"
        subprocess.run(ip, input=lines, text=True, check=True, timeout=SECONDS)


def _cards() -> dict[str, str]:
    """Names of network interfaces by hardware address."""
    return {file.read_text().strip(): file.parent.name for file in Path("/sys/class/net").glob("*/address")}


def _answers() -> bool:
    return subprocess.run(["virsh", "-q", "version"], capture_output=True, timeout=SECONDS).returncode == 0


if __name__ == "__main__":
    join(json.loads(Path(sys.argv[1]).read_text()))
