# SPDX-License-Identifier: GPL-2.0-or-later
"""What is recorded: the corpus, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BASE = ("-accel", "kvm", "-cpu", "host", "-m", "32", "-nodefaults", "-display", "none")
DEVICES = (
    *("-device", "VGA"),
    *("-device", "pcie-root-port,id=port1,chassis=1,slot=1", "-device", "pcie-root-port,id=port2,chassis=2,slot=2"),
    *("-netdev", "socket,id=net,udp=127.0.0.1:9,localaddr=127.0.0.1:9"),
    # the boot ROM would be a quarter of a megabyte that does not compress
    *("-device", "virtio-net-pci,netdev=net,bus=port1,romfile="),
    *("-blockdev", "null-co,node-name=disk,size=1048576,read-zeroes=on"),
    *("-device", "virtio-blk-pci,drive=disk,bus=port2", "-device", "qemu-xhci"),
)


@dataclass(frozen=True)
class Migration:
    """A migration of the L1 guest to record.

    ``vcpus`` is a letter per vCPU as inhost.modes knows them.  ``dirty`` pages per vCPU are written to all
    the time, with ``spin`` iterations in between.  Without a ``destination`` the relay swallows the stream.
    ``passes`` over the guest's memory are enforced before the migration may complete.  ``nmi`` sends two NMIs:
    one to take, one that stays pending.  With ``run_pending`` attempts are made until a vCPU is caught between VMRUN
    and L2's first instruction.
    """

    name: str
    vcpus: str
    machine: str = "pc"
    devices: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    destination: bool = False
    dirty: int = 0
    spin: int = 400_000
    passes: int = 0
    nmi: bool = False
    run_pending: bool = False

    @property
    def guest(self) -> str:
        """The guest's command line."""
        return f"vcpus={self.vcpus} dirty={self.dirty} spin={self.spin}"

    def arguments(self) -> list[str]:
        """QEMU's command line without its name, sockets and files of the recording."""
        return [
            *("-machine", self.machine, *BASE, "-smp", str(len(self.vcpus)), *self.devices),
            *("-kernel", "l1.elf", "-append", self.guest),
        ]


@dataclass(frozen=True)
class SaveImage:
    """A libvirt save image of the L1 guest to record; libvirt's ``save_image_format`` names the format."""

    save_format: str
    vcpus: str = "2"

    @property
    def name(self) -> str:
        """The scenario's name."""
        return f"save-{self.save_format}"

    @property
    def guest(self) -> str:
        """The guest's command line."""
        return f"vcpus={self.vcpus}"


Scenario = Migration | SaveImage


L2 = Migration("l2", "2")
MIGRATIONS = (
    L2,
    Migration("l2-npt", "n"),
    Migration("mixed", "2n1-"),
    Migration("l1", "1"),
    Migration("q35", "2", machine="q35", devices=DEVICES),
    # the newest type that the QEMU of every host has
    Migration("common-type", "2n", machine="pc-i440fx-7.2"),
    # each mode of the guest that the others lack
    Migration("states", "NpPwWcvVIidDs0rr", spin=2_000_000, nmi=True, run_pending=True),
    Migration("return-path", "2", capabilities=("return-path",), destination=True),
    Migration(
        "multifd",
        "2",
        capabilities=("return-path", "multifd"),
        parameters={"multifd-channels": 2},
        destination=True,
    ),
    Migration(
        "postcopy",
        "2",
        capabilities=("return-path", "postcopy-ram"),
        parameters={"max-bandwidth": 1 << 20, "max-postcopy-bandwidth": 1 << 20},
        destination=True,
        dirty=512,
        spin=20_000,
    ),
    Migration(
        "xbzrle",
        "2",
        capabilities=("return-path", "xbzrle"),
        parameters={"max-bandwidth": 4 << 20, "downtime-limit": 1},
        destination=True,
        dirty=128,
        spin=20_000,
        passes=5,
    ),
)

# What a kernel that emits svm2 knows better than the stream: L2's registers on each kind of paging, and DR7.
SVM2 = Migration("l2", "2nd", machine="pc-i440fx-7.2")

# libvirt 11.3 writes save images that it cannot restore when QEMU is 11.1, so ``new`` has none.
CORPUS: dict[str, tuple[Scenario, ...]] = {
    "old": (*MIGRATIONS, SaveImage("raw")),
    "mid": (*MIGRATIONS, SaveImage("raw"), SaveImage("gzip"), SaveImage("zstd")),
    "new": MIGRATIONS,
    "mid-svm2": (SVM2,),
    "new-svm2": (SVM2,),
}
