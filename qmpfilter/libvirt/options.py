# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of ``virsh migrate``, and what each is to libvirt: a flag, a typed parameter, or refused.

Source: libvirt 11.3 include/libvirt/libvirt-domain.h (virDomainMigrateFlags, VIR_MIGRATE_PARAM_*), and its manual of
virsh for the names of the options.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qmpfilter.errors import PolicyError

__all__ = ["OPTIONS", "Flag", "Kind", "Option", "wanted"]


class Flag(enum.IntFlag):
    """virDomainMigrateFlags, as far as they are used."""

    LIVE = 1 << 0
    PEER2PEER = 1 << 1
    PERSIST_DEST = 1 << 3
    UNDEFINE_SOURCE = 1 << 4
    PAUSED = 1 << 5
    NON_SHARED_DISK = 1 << 6
    NON_SHARED_INC = 1 << 7
    CHANGE_PROTECTION = 1 << 8
    UNSAFE = 1 << 9
    COMPRESSED = 1 << 11
    ABORT_ON_ERROR = 1 << 12
    AUTO_CONVERGE = 1 << 13
    POSTCOPY = 1 << 15
    PARALLEL = 1 << 17
    SYNCHRONOUS_WRITES = 1 << 18
    ZEROCOPY = 1 << 20

    @property
    def names(self) -> list[str]:
        """Those that are set, as libvirt writes them without its prefix."""
        return [one.name for one in self if one.name is not None]


class Kind(enum.Enum):
    """What an option takes."""

    NOTHING = enum.auto()
    TEXT = enum.auto()
    NUMBER = enum.auto()
    LIST = enum.auto()
    """Names with commas between them."""
    FILE = enum.auto()
    """A file, the text of which it stands for."""


@dataclass(frozen=True, slots=True)
class Option:
    """One of virsh's.

    :param name: without the dashes before it
    :param help: one sentence
    :param flag: what it sets
    :param parameter: the typed parameter that has its value
    :param kind: of its value
    :param shown: the value in a help text
    :param refused: why it cannot be, and what can
    """

    name: str
    help: str
    flag: Flag
    parameter: str = ""
    kind: Kind = Kind.NOTHING
    shown: str = ""
    refused: str = ""

    @property
    def key(self) -> str:
        """The name as one of Python's."""
        return self.name.replace("-", "_")


_OWN_WAY: Final = (
    "leave it away; to encrypt, let a pair of filters or a network of their own (WireGuard, IPsec) protect the way "
    "between the hosts"
)
_ENCRYPTED: Final = f"has QEMU encrypt its stream, which then cannot be filtered: {_OWN_WAY}"

_NONE: Final = Flag(0)


def _flag(name: str, flag: Flag, text: str) -> Option:
    return Option(name, text, flag)


def _value(name: str, parameter: str, kind: Kind, shown: str, text: str) -> Option:
    return Option(name, text, _NONE, parameter, kind, shown)


def _refused(name: str, why: str, shown: str = "") -> Option:
    kind = Kind.TEXT if shown else Kind.NOTHING
    return Option(name, "Refused: it cannot be filtered.", _NONE, "", kind, shown, why)


OPTIONS: Final = (
    _flag("live", Flag.LIVE, "Let the guest run while its memory is copied."),
    _flag("p2p", Flag.PEER2PEER, "The source's libvirt itself connects to DESTURI."),
    _flag("persistent", Flag.PERSIST_DEST, "Define the domain at the destination."),
    _flag("undefinesource", Flag.UNDEFINE_SOURCE, "Undefine it at the source."),
    _flag("suspend", Flag.PAUSED, "Leave the guest paused at the destination."),
    _flag("copy-storage-all", Flag.NON_SHARED_DISK, "Copy the disks, whole; they go past the filter."),
    _flag("copy-storage-inc", Flag.NON_SHARED_INC, "Copy what the disks have beyond a shared base."),
    _flag("copy-storage-synchronous-writes", Flag.SYNCHRONOUS_WRITES, "Have writes wait for the copy of the disks."),
    _flag("change-protection", Flag.CHANGE_PROTECTION, "Forbid changes of the domain meanwhile."),
    _flag("unsafe", Flag.UNSAFE, "Migrate even if libvirt takes it for unsafe."),
    _flag("abort-on-error", Flag.ABORT_ON_ERROR, "Give up at a soft error, as one of a disk."),
    _flag("auto-converge", Flag.AUTO_CONVERGE, "Slow down a guest that changes memory too fast."),
    _flag("postcopy", Flag.POSTCOPY, "Allow postcopy."),
    _flag("parallel", Flag.PARALLEL, "Copy memory over several connections."),
    _flag("zerocopy", Flag.ZEROCOPY, "Send memory from where it is; with --parallel."),
    _flag("compressed", Flag.COMPRESSED, "Compress memory."),
    _value("parallel-connections", "parallel.connections", Kind.NUMBER, "N", "How many connections."),
    _value("comp-methods", "compression", Kind.LIST, "NAME,...", "How to compress."),
    _value("comp-mt-level", "compression.mt.level", Kind.NUMBER, "N", "Level of mt."),
    _value("comp-mt-threads", "compression.mt.threads", Kind.NUMBER, "N", "Threads of mt."),
    _value("comp-mt-dthreads", "compression.mt.dthreads", Kind.NUMBER, "N", "Threads of mt that decompress."),
    _value("comp-xbzrle-cache", "compression.xbzrle.cache", Kind.NUMBER, "BYTES", "Cache of xbzrle."),
    _value("comp-zlib-level", "compression.zlib.level", Kind.NUMBER, "N", "Level of zlib."),
    _value("comp-zstd-level", "compression.zstd.level", Kind.NUMBER, "N", "Level of zstd."),
    _value("auto-converge-initial", "auto_converge.initial", Kind.NUMBER, "PERCENT", "Slow down by so much first."),
    _value("auto-converge-increment", "auto_converge.increment", Kind.NUMBER, "PERCENT", "And by so much more."),
    _value("bandwidth", "bandwidth", Kind.NUMBER, "MIB", "The most that is sent in a second."),
    _value("postcopy-bandwidth", "bandwidth.postcopy", Kind.NUMBER, "MIB", "The same in postcopy."),
    _value("dname", "destination_name", Kind.TEXT, "NAME", "The domain's name at the destination."),
    _value("xml", "destination_xml", Kind.FILE, "FILE", "The domain as it is to run at the destination."),
    _value("persistent-xml", "persistent_xml", Kind.FILE, "FILE", "The domain as it is to be defined there."),
    _value("graphicsuri", "graphics_uri", Kind.TEXT, "URI", "Where viewers of the guest go on."),
    _value("listen-address", "listen_address", Kind.TEXT, "ADDRESS", "Where the destination's QEMU listens."),
    _value("migrate-disks", "migrate_disks", Kind.LIST, "DISK,...", "The disks to copy."),
    _value(
        "migrate-disks-detect-zeroes", "migrate_disks_detect_zeroes", Kind.LIST, "DISK,...",
        "Those of them whose zeroes are not sent.",
    ),
    _value("disks-port", "disks_port", Kind.NUMBER, "PORT", "The port to which the disks are copied."),
    _value("disks-uri", "disks_uri", Kind.TEXT, "URI", "The same, as tcp://HOST:PORT or unix:///PATH."),
    _refused(
        "tunnelled", f"sends the stream within libvirt's own connection, past every filter: {_OWN_WAY}"
    ),
    _refused("tls", _ENCRYPTED),
    _refused("tls-destination", _ENCRYPTED, "NAME"),
    _refused("rdma-pin-all", "is of RDMA, which passes no socket that could be filtered: migrate over TCP"),
    _refused("offline", "moves a domain that does not run, of which there is no state to filter: use virsh migrate"),
    _refused(
        "postcopy-resume",
        "goes on with a stream whose beginning the filter has not seen: use virsh migrate, with the --migrateuri of "
        "the destination itself",
    ),
)  # fmt: skip


def wanted(given: Mapping[str, Any]) -> tuple[Flag, dict[str, Any]]:
    """Flags and typed parameters.

    :param given: values by the options' keys; None or False of those that were not used
    :raises PolicyError: one of them is refused, and why; or two contradict each other
    """
    flags, parameters = _NONE, {}
    for option in OPTIONS:
        value = given.get(option.key)
        if value is None or value is False:
            continue
        if option.refused:
            raise PolicyError(f"--{option.name} {option.refused}")
        flags |= option.flag
        if option.parameter:
            parameters[option.parameter] = value.split(",") if option.kind is Kind.LIST else value
    if Flag.NON_SHARED_DISK in flags and Flag.NON_SHARED_INC in flags:
        raise PolicyError("--copy-storage-all and --copy-storage-inc exclude each other")
    return flags, parameters
