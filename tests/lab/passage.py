# SPDX-License-Identifier: GPL-2.0-or-later
"""`virsh migrate` through a relay at the source, and what reached the destination's network or the relay there."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
_OTHER: Final = "/run/pair"
_MEET: Final = """
rm -f {other}.json
PYTHONPATH={package} setsid python3 -m qmpfilter relay pair:tcp:{address}:{port} tcp:127.0.0.1:{port} {options} \
    --report {other}.json >{other}.log 2>&1 &
echo $! >{other}.pid
until ss -Hltn 'sport = :{port}' | grep -q .; do kill -0 $(cat {other}.pid) || exec cat {other}.log; sleep 0.2; done
"""
_PART: Final = f"""
while kill -0 $(cat {_OTHER}.pid) 2>/dev/null; do sleep 0.2; done
cp {_OTHER}.json out/report.json
"""


@dataclass(frozen=True)
class Passage:
    """One migration.

    :param status: virsh's exit status
    :param said: what it printed, on either output
    :param report_text: the relay's report
    :param stream: what the source's host sent to the destination's, if it was recorded
    :param arrival: the report of the relay at the destination, if there was one
    """

    status: int
    said: str
    report_text: str
    stream: bytes = b""
    arrival: Mapping[str, Any] | None = None

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
    listening = _LISTEN.format(port=PORT, stream=_STREAM, address=there.address, seconds=int(SECONDS))
    there.run(["sh", "-c", listening], {}, SECONDS)
    passage = _pass(journey, there, relay, files)
    stream = there.run(["sh", "-c", _COLLECT], {}, SECONDS).files.get("stream", b"")
    return Passage(*passage, stream=stream)


def by_pair(journey: Journey, there: Member, source: Sequence[str] = (), destination: Sequence[str] = ()) -> Passage:
    """Has virsh migrate the guest to a relay on its own host, which meets one at the destination.

    :param source: options of the one
    :param destination: options of the other
    """
    meeting = _MEET.format(
        package=installed(there), address=there.address, port=PORT, other=_OTHER, options=" ".join(destination)
    )
    there.run(["sh", "-c", meeting], {}, SECONDS)
    passage = _pass(journey, there, [f"pair:tcp:{there.name}:{PORT}", *source], {})
    arrival = there.run(["sh", "-c", _PART], {}, SECONDS).files["report.json"]
    return Passage(*passage, arrival=json.loads(arrival))


def _pass(journey: Journey, there: Member, relay: Sequence[str], files: Mapping[str, bytes]) -> tuple[int, str, str]:
    """virsh's status, what it said, and the relay's report."""
    spec = {"address": _SELF, "port": PORT, "relay": relay, "command": ["env", "LC_ALL=C", *command(there)]}
    given = {**files, "spec.json": json.dumps(spec).encode()}
    left = run_python(journey.here, ["-m", "inhost.relaying", "spec.json"], given, SECONDS).files
    said = json.loads(left["said.json"])
    return said["status"], said["text"], left["report.json"].decode()


def give_certificates(member: Member, directory: Path) -> None:
    """Puts certificates where libvirt and the filter look for them.

    :param directory: with the layout of ``/etc/pki``
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(directory.rglob("*.pem")):
            archive.write(file, file.relative_to(directory))
    member.run(["python3", "-m", "zipfile", "-e", "pki.zip", "/etc/pki"], {"pki.zip": packed.getvalue()}, SECONDS)
