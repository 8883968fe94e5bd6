# SPDX-License-Identifier: GPL-2.0-or-later
"""Members of a cluster as an operator has them: with the daemon, and with libvirt's hook."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree

from qmpfilter.libvirt.arrival import NAMESPACE, Arrival
from qmpfilter.svm import native
from qmpfilter.svm.svm2 import Svm2State

from .cluster import DOMAIN, SECONDS, Cluster, Member, each
from .package import installed

_HOOK: Final = Path(__file__).parents[2] / "hooks/qemu"
_HOOKS: Final = "/etc/libvirt/hooks/qemu.d/50-qmpfilter"
# An emulated processor is slow, and what is to be filtered must not pass for that.
_HOOK_CONF: Final = b"deadline = 120\nrequire_daemon = yes\n"
_TOML: Final = "[ingress]\nrequired = true\n"
_CONFIGURATION: Final = "/etc/qmpfilter"
_START: Final = f"""
set -e
rm -rf {_CONFIGURATION}
mkdir -p {_CONFIGURATION}
cp {{names}} {_CONFIGURATION}
setsid env PYTHONPATH={{package}} python3 -m qmpfilter run >/run/qmpfilter.log 2>&1 &
echo $! >/run/qmpfilter.pid
until test -S /run/qmpfilter/control.sock; do
    kill -0 $(cat /run/qmpfilter.pid) || {{{{ cat /run/qmpfilter.log; exit 1; }}}}
    sleep 0.2
done
install -m 755 qemu {_HOOKS}
"""
_STOP: Final = f"""
rm -f {_HOOKS}
kill $(cat /run/qmpfilter.pid) || exit 0
while kill -0 $(cat /run/qmpfilter.pid) 2>/dev/null; do sleep 0.2; done
"""
_TOLD: Final = """
report=/var/lib/qmpfilter/sessions/{session}.json
until test -e $report; do sleep 0.2; done
cp $report out/report.json
test ! -e {records} || cp {records}/*.svm2 out
"""


class Configuration(NamedTuple):
    """What a member's daemon is told.

    :param toml: added to its configuration
    :param files: beside that, by name
    """

    toml: str = ""
    files: Mapping[str, bytes] = MappingProxyType({})


@contextmanager
def hooked(
    cluster: Cluster, configure: Callable[[Member], Configuration] = lambda _: Configuration()
) -> Iterator[None]:
    """With both on all members.

    :param configure: what each is told
    """
    members = cluster.members.values()
    try:
        each(lambda member: _start(member, configure(member)), members)
        yield
    finally:
        each(lambda member: member.run(["sh", "-c", _STOP], {}, SECONDS), members)


def _start(member: Member, configuration: Configuration) -> None:
    told = {"hook.conf": _HOOK_CONF, "qmpfilter.toml": f"{_TOML}{configuration.toml}".encode(), **configuration.files}
    start = _START.format(package=installed(member), names=" ".join(told))
    member.run(["sh", "-c", start], {"qemu": _HOOK.read_bytes(), **told}, SECONDS)


@dataclass(frozen=True)
class Arrived:
    """What a member has of a guest's arrival: what its metadata say, the daemon's report, the records by vCPU."""

    told: Arrival
    report: dict[str, Any]
    records: dict[int, Svm2State]


def arrival_at(member: Member) -> Arrived:
    """Of the guest that is there. Raises JobFailed if its metadata name no arrival, or no record is there."""
    element = ElementTree.fromstring(member.virsh("metadata", DOMAIN, "--uri", NAMESPACE))
    told = Arrival.of(element.attrib)
    assert told is not None
    where = _TOLD.format(session=told.session, records=told.records)
    files = member.run(["sh", "-ec", where], {}, SECONDS).files
    report = json.loads(files.pop("report.json"))
    blobs = {int(name.removeprefix("vcpu").removesuffix(".svm2")): blob for name, blob in files.items()}
    return Arrived(told, report, {index: native.decode_blob(blob) for index, blob in blobs.items()})
