# SPDX-License-Identifier: GPL-2.0-or-later
"""`virsh migrate` through a relay at the source, and what reached the destination's network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .cluster import SECONDS, Journey, Member, migrate
from .package import installed, run_python

#: Above those that libvirt gives away; both ends take it from the URI.
PORT: Final = 49300
_SELF: Final = "127.0.0.2"
_STREAM: Final = "/run/wire"
_LISTEN: Final = """
setsid socat -t {seconds} -r {stream} TCP4-LISTEN:{port},bind={address},reuseaddr TCP4:127.0.0.1:{port} &
echo $! >{stream}.pid
until ss -Hltn 'sport = :{port}' | grep -q .; do sleep 0.1; done
"""
_COLLECT: Final = f"kill $(cat {_STREAM}.pid); test ! -e {_STREAM} || mv {_STREAM} out/stream"


@dataclass(frozen=True)
class Passage:
    """One migration.

    :param status: virsh's exit status
    :param said: what it printed, on either output
    :param report_text: the relay's report
    :param stream: what the source's host sent to the destination's
    """

    status: int
    said: str
    report_text: str
    stream: bytes

    @property
    def report(self) -> dict[str, Any]:
        """The report."""
        told: dict[str, Any] = json.loads(self.report_text)
        return told


def facts(of: Member) -> bytes:
    """What `doctor` knows of a host, for a relay's `--host`."""
    doctor = f"PYTHONPATH={installed(of)} python3 -m qmpfilter doctor --json >out/facts"
    return of.run(["sh", "-c", doctor], {}, SECONDS).files["facts"]


def command(there: Member) -> Sequence[str]:
    """How virsh is told that a relay waits on its own host."""
    return ["virsh", *migrate(there), "--migrateuri", f"tcp://{_SELF}:{PORT}", "--listen-address", "127.0.0.1"]


def by_source(journey: Journey, there: Member, *options: str, destination: bytes | None = None) -> Passage:
    """Has virsh migrate the guest to a relay on its own host.

    :param options: the relay's
    :param destination: its facts
    """
    relay = [f"tcp:{there.address}:{PORT}", *options]
    files = {}
    if destination is not None:
        relay += ["--host", "facts.json"]
        files["facts.json"] = destination
    spec = {"address": _SELF, "port": PORT, "relay": relay, "command": ["env", "LC_ALL=C", *command(there)]}
    files["spec.json"] = json.dumps(spec).encode()
    listening = _LISTEN.format(port=PORT, stream=_STREAM, address=there.address, seconds=int(SECONDS))
    there.run(["sh", "-c", listening], {}, SECONDS)
    left = run_python(journey.here, ["-m", "inhost.relaying", "spec.json"], files, SECONDS).files
    stream = there.run(["sh", "-c", _COLLECT], {}, SECONDS).files.get("stream", b"")
    said = json.loads(left["said.json"])
    return Passage(said["status"], said["text"], left["report.json"].decode(), stream)
