# SPDX-License-Identifier: GPL-2.0-or-later
"""What the relay adds to a migration from QEMU to QEMU: total time, and the time for which the guest stands still.

A guest of 2 GiB, half of which is full, goes from one QEMU to the next, directly and through `qmpfilter relay` in
turns. The times are QEMU's own (query-migrate). The guest runs under TCG, so no vCPU of it is in L2 for KVM; what
converting costs is in :mod:`tests.bench.relay_tail`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from tests.lab.inhost.machine import Machine
from tests.lab.inhost.waiting import wait_until
from tests.lab.live import RelayProcess, machine, qemu_in

__all__ = ["run"]

_MEMORY_MIB: Final = 2048
_FULL_MIB: Final = 1024
_FULL_FROM: Final = 256 << 20
_PAGE: Final = bytes(range(256)) * 16
_ROUNDS: Final = 7
_LAST: Final = 19
_SECONDS: Final = 120.0
# More than any memory gives: QEMU's own default is 128 MiB/s.
_BANDWIDTH: Final = 64 << 30
_WANTED_RATIO: Final = 1.05
_WANTED_MORE_DOWNTIME: Final = 5.0


class _Took(NamedTuple):
    """Milliseconds."""

    total: int
    downtime: int


def run() -> bool:
    """Print the figures; True if they are as good as promised."""
    direct: list[_Took] = []
    relayed: list[_Took] = []
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
        for turn in range(2 * _ROUNDS + 1):
            there = running.enter_context(machine(directory, f"vm{turn + 1}", incoming=True, memory=_MEMORY_MIB))
            _give_way(there)
            took = _migrated(directory, here, there, turn, through_relay=bool(turn % 2))
            # The first one is to fill caches.
            if turn:
                (relayed if turn % 2 else direct).append(took)
            there.wait_for_rounds({0: here.progress().rounds[0][-1]})
            here.kill()
            here = there
    return _told(direct, relayed)


def _give_way(guest: Machine) -> None:
    """Let the guest's vCPU, which TCG keeps busy all the time, leave the processors to who migrates it."""
    for vcpu in guest.qmp.command("query-cpus-fast"):
        os.setpriority(os.PRIO_PROCESS, vcpu["thread-id"], _LAST)


def _migrated(directory: Path, here: Machine, there: Machine, turn: int, *, through_relay: bool) -> _Took:
    incoming = f"incoming{turn}"
    for end in (here, there):
        end.configure(["return-path", "events"], {"max_bandwidth": _BANDWIDTH})
    there.qmp.command("migrate-incoming", uri=f"unix:{directory / incoming}")
    if not through_relay:
        return _completed(here, directory / incoming)
    with RelayProcess(directory, listen=f"relay{turn}", connect=incoming) as relay:
        took = _completed(here, relay.address)
        outcome = relay.report()["outcome"]
    if outcome != "completed":
        raise RuntimeError(f"the relay says {outcome}")
    return took


def _completed(here: Machine, address: Path) -> _Took:
    here.qmp.command("migrate", uri=f"unix:{address}")
    wait_until(
        lambda: here.qmp.command("query-migrate")["status"] in ("completed", "failed"), _SECONDS, "a migration", 0.05
    )
    info = here.qmp.command("query-migrate")
    if info["status"] != "completed":
        raise RuntimeError(info.get("error-desc", "the migration failed"))
    return _Took(info["total-time"], info["downtime"])


def _told(direct: list[_Took], relayed: list[_Took]) -> bool:
    total, downtime = (statistics.median(column) for column in zip(*direct, strict=True))
    ours, ours_down = (statistics.median(column) for column in zip(*relayed, strict=True))
    ratio, more = ours / total, ours_down - downtime
    print(f"QEMU to QEMU, guest of {_MEMORY_MIB} MiB, {_FULL_MIB} MiB of it full, medians of {_ROUNDS} in turns:")
    print(f"  directly           {total:6.0f} ms, downtime {downtime:5.0f} ms")
    print(f"  through the relay  {ours:6.0f} ms, downtime {ours_down:5.0f} ms")
    print(f"  ratio of total time {ratio:.2f}  (wanted: {_WANTED_RATIO} or less)")
    print(f"  more downtime {more:.0f} ms  (wanted: {_WANTED_MORE_DOWNTIME:.0f} or less)")
    return bool(ratio <= _WANTED_RATIO and more <= _WANTED_MORE_DOWNTIME)
