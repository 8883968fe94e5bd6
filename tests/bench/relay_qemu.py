# SPDX-License-Identifier: GPL-2.0-or-later
"""What the relay adds to a migration from QEMU to QEMU: total time, and the time for which the guest stands still.

A guest of 2 GiB, half of which is full, goes from one QEMU to the next: directly, through socat with its buffer of
1 MiB, and through `qmpfilter relay`, in turns. The times are QEMU's own (query-migrate). First as fast as QEMU does
it by default, 128 MiB/s; then as fast as it can. Then both QEMUs keep all processors busy, and what stands between
them takes its time from theirs: socat, which only copies, shows how much of that no program avoids, and the processor
seconds tell who took what. Last with multifd, where the guest's memory goes through channels of its own, which the
relay does not read. Of total times the best counts: on a machine that others share, most of a median is theirs. The
guest runs under TCG, so no vCPU of it is in L2 for KVM; what converting costs is in :mod:`tests.bench.relay_tail`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.links import PEER, processor_seconds
from tests.lab.inhost.machine import Machine
from tests.lab.inhost.waiting import listens, wait_until
from tests.lab.live import RelayProcess, machine, qemu_in

__all__ = ["run"]

_MEMORY_MIB: Final = 2048
_FULL_MIB: Final = 1024
_FULL_FROM: Final = 256 << 20
_PAGE: Final = bytes(range(256)) * 16
_LAST: Final = 19
_SECONDS: Final = 120.0
_TICK: Final = 0.05
_WANTED_RATIO: Final = 1.05
_WANTED_MORE_DOWNTIME: Final = 5.0


_DIRECT: Final = "directly"
_PEER: Final = f"through {PEER}"
_OURS: Final = "through the relay"
_WAYS: Final = (_DIRECT, _PEER, _OURS)


class _Pace(NamedTuple):
    """How fast a migration may go, and how.

    :param bandwidth: bytes a second
    :param rounds: of all ways
    :param channels: of multifd, or 0
    :param ways: that are compared
    """

    name: str
    bandwidth: int
    rounds: int
    channels: int = 0
    ways: tuple[str, ...] = _WAYS


_PACES: Final = (
    _Pace("128 MiB/s, QEMU's default", 128 << 20, 4),
    _Pace("as fast as it can", 64 << 30, 7),
    # The last: a QEMU keeps its capabilities for the next turn. The peer takes one connection.
    _Pace("multifd, as fast as it can", 64 << 30, 5, channels=2, ways=(_DIRECT, _OURS)),
)


class _Took(NamedTuple):
    """One migration.

    :param total: milliseconds
    :param downtime: milliseconds
    :param ends: processor seconds of both QEMUs without their vCPUs
    :param between: those of what stood between them
    """

    total: float
    downtime: float
    ends: float
    between: float


def run() -> bool:
    """Print the figures; True if they are as good as promised."""
    with tempfile.TemporaryDirectory(prefix="qmpfilter-bench-") as folder, contextlib.ExitStack() as running:
        directory = Path(folder)
        running.enter_context(qemu_in(directory))
        contents = directory / "contents"
        with contents.open("wb") as file:
            for _ in range(_FULL_MIB):
                file.write(_PAGE * 256)
        loader = ("-device", f"loader,file={contents},addr={_FULL_FROM:#x},force-raw=on")
        here = running.enter_context(machine(directory, "vm0", memory=_MEMORY_MIB, extra=loader))
        _give_way(here)
        here.wait_for_rounds({0: 0})
        contents.unlink()
        turn = 0
        good = True
        for pace in _PACES:
            taken: dict[str, list[_Took]] = {way: [] for way in pace.ways}
            # The first one is to fill caches.
            for way in ("", *pace.ways * pace.rounds):
                turn += 1
                there = running.enter_context(machine(directory, f"vm{turn}", incoming=True, memory=_MEMORY_MIB))
                _give_way(there)
                took = _migrated(directory, here, there, turn, way or _DIRECT, pace)
                if way:
                    taken[way].append(took)
                there.wait_for_rounds({0: here.progress().rounds[0][-1]})
                here.kill()
                here = there
            good &= _told(taken, pace)
    return good


def _give_way(guest: Machine) -> None:
    """Let the guest's vCPU, which TCG keeps busy all the time, leave the processors to who migrates it."""
    for vcpu in guest.vcpus():
        os.setpriority(os.PRIO_PROCESS, vcpu, _LAST)


def _migrated(directory: Path, here: Machine, there: Machine, turn: int, way: str, pace: _Pace) -> _Took:
    incoming = f"incoming{turn}"
    for end in (here, there):
        end.configure(["return-path", "events"], {"max_bandwidth": pace.bandwidth})
        if pace.channels:
            end.configure(["multifd"], {"multifd_channels": pace.channels})
    there.qmp.command("migrate-incoming", uri=f"unix:{directory / incoming}")
    if way == _DIRECT:
        return _completed(here, there, directory / incoming, None)
    if way == _PEER:
        address = directory / f"peer{turn}"
        argv = [*PEER.split(), f"UNIX-LISTEN:{address}", f"UNIX-CONNECT:{directory / incoming}"]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as peer:
            wait_until(lambda: listens(address), _SECONDS, "the peer's socket", _TICK)
            took = _completed(here, there, address, peer.pid)
            peer.kill()
        return took
    with RelayProcess(directory, listen=f"relay{turn}", connect=incoming) as relay:
        took = _completed(here, there, relay.address, relay.process.pid)
        outcome = relay.report()["outcome"]
    if outcome != "completed":
        raise RuntimeError(f"the relay says {outcome}")
    return took


def _completed(here: Machine, there: Machine, address: Path, between: int | None) -> _Took:
    """Migrate to an address, with a process between or none."""

    guests = [(end, end.vcpus()) for end in (here, there)]

    def ends() -> float:
        return sum(
            processor_seconds(end.pid) - sum(processor_seconds(end.pid, vcpu) for vcpu in vcpus)
            for end, vcpus in guests
        )

    def look() -> bool:
        # Who has passed everything on may have ended: what was seen last counts.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            seen.append(0.0 if between is None else processor_seconds(between))
        return here.qmp.command("query-migrate").get("status") in ("completed", "failed")

    seen: list[float] = []
    before = ends()
    look()
    here.qmp.command("migrate", uri=f"unix:{address}")
    wait_until(look, _SECONDS, "a migration", _TICK)
    info = here.qmp.command("query-migrate")
    if info["status"] != "completed":
        raise RuntimeError(info.get("error-desc", "the migration failed"))
    return _Took(info["total-time"], info["downtime"], ends() - before, max(seen) - seen[0])


def _told(taken: dict[str, list[_Took]], pace: _Pace) -> bool:
    median = {
        way: _Took(*(statistics.median(column) for column in zip(*passes, strict=True)))
        for way, passes in taken.items()
    }
    best = {way: min(took.total for took in passes) for way, passes in taken.items()}
    print(f"QEMU to QEMU, {pace.name}; guest of {_MEMORY_MIB} MiB, {_FULL_MIB} MiB of it full, "
          f"best total and medians of {pace.rounds} in turns:")  # fmt: skip
    for way, took in median.items():
        print(f"  {way:<23} {best[way]:6.0f} ms, median {took.total:6.0f} ms, downtime {took.downtime:4.0f} ms, "
              f"processor seconds: QEMUs {took.ends:.2f}, between {took.between:.2f}")  # fmt: skip
    ratio = {way: total / best[_DIRECT] for way, total in best.items()}
    more = {way: took.downtime - median[_DIRECT].downtime for way, took in median.items()}
    if _PEER in best:
        print(f"  ratio of total time to directly {ratio[_PEER]:.2f}, more downtime {more[_PEER]:.0f} ms: {PEER}")
    print(f"  ratio of total time to directly {ratio[_OURS]:.2f}, more downtime {more[_OURS]:.0f} ms  "
          f"(wanted: {_WANTED_RATIO} and {_WANTED_MORE_DOWNTIME:.0f} ms or less)")  # fmt: skip
    return ratio[_OURS] <= _WANTED_RATIO and more[_OURS] <= _WANTED_MORE_DOWNTIME
