# SPDX-License-Identifier: GPL-2.0-or-later
"""What examples/demo shows: ``python -m tests.lab.demo DIRECTORY``, where it leaves the reports and the stream."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, TypeVar

from .cluster import NPT, SECONDS, Cluster, Journey, Member
from .hosts import MID, OLD, host_image
from .passage import PORT, Passage, by_source, command, facts

_BEAT: Final = 20.0
_T = TypeVar("_T")


def main(directory: Path) -> None:
    """Raises what the laboratory raises, and SystemExit where a migration ended otherwise than it has to."""
    for host in (MID, OLD):
        _with_patience(f"host '{host.name}' from distribution packages, kept for the next time", host_image, host)
    with _with_patience("booting both under emulation, each with its libvirt", Cluster, OLD, MID) as cluster:
        old, mid = cluster[OLD], cluster[MID]
        for member in (old, mid):
            versions = member.image.versions
            print(f"   {member.name}: Linux {member.kernel}, QEMU {versions['qemu']}, libvirt {versions['libvirt']}")
        journey = _with_patience("a guest at 'old' that runs two guests of its own", cluster.start, OLD)
        _goes_on(journey)

        taken = _migrate(journey, mid, directory / "taken.json")
        if taken.status != 0:
            raise SystemExit("virsh should have migrated the guest")
        (directory / "stream").write_bytes(taken.stream)
        _with_patience("do the guest's guests go on at 'mid'?", journey.arrived, mid)
        _goes_on(journey)

        say("now 'old' loses nested paging, which one of them needs; its QEMU would take the guest and break it")
        old.run(["sh", "-c", NPT.format(0)], {}, SECONDS)
        kept = _migrate(journey, old, directory / "kept.json")
        if kept.status == 0:
            raise SystemExit("virsh should not have migrated the guest")
        _with_patience("do they go on where they were?", journey.stayed)
        _goes_on(journey)


def _migrate(journey: Journey, there: Member, report: Path) -> Passage:
    here = journey.here.name
    destination = _with_patience(f"{there.name}# qmpfilter doctor --json   (what can it take?)", facts, there)
    say(f"{here}# qmpfilter relay tcp:127.0.0.2:{PORT} tcp:{there.name}:{PORT} --host {there.name}.json &")
    passage = _with_patience(
        f"{here}# {' '.join(command(there))}", lambda: by_source(journey, there, destination=destination)
    )
    print("".join(f"   {line}\n" for line in passage.said.splitlines()), end="")
    print(f"   virsh ends with {passage.status}")
    report.write_text(passage.report_text)
    say(f"qmpfilter report {report}")
    subprocess.run([sys.executable, "-m", "qmpfilter", "report", str(report)], check=True)
    return passage


def _goes_on(journey: Journey) -> None:
    rounds = ", ".join(f"{number:,}" for _, number in sorted(journey.rounds.items()))
    print(f"   each has verified all of its registers, so many times: {rounds}; none was ever wrong")


def say(text: str) -> None:
    """A heading."""
    print(f"\n== {text}", flush=True)


def _with_patience(what: str, do: Callable[..., _T], *arguments: object) -> _T:
    """Does it, and tells now and then that it goes on."""
    say(what)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as worker:
        result = worker.submit(do, *arguments)
        while not wait([result], _BEAT).done:
            print(f"   {time.monotonic() - began:.0f} s", flush=True)
        return result.result()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
