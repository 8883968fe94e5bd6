# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast and in how much memory `qmpfilter inspect` reads a stream of guest RAM.

The peer is ``cat FILE > /dev/null`` on the same file in the same run, both from the page cache.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from qmpfilter.wire.ram import PAGE_SIZE
from tests.bench.streams import guest_ram

__all__ = ["run"]

_STREAM_BYTES = 4 << 30
_ZERO_GUEST_BYTES = 64 << 30
_RECORD_BYTES = 8 + PAGE_SIZE
_ROUNDS = 5
_WANTED_RATIO = 0.4
_WANTED_RESIDENT = 64 << 20
_SHARED_MEMORY = Path("/dev/shm")


def run() -> bool:
    """Print both figures; True if they are as good as promised."""
    with tempfile.TemporaryDirectory(dir=_directory(), prefix="qmpfilter-bench-") as folder:
        fast_enough = _ordinary_pages(Path(folder) / "pages")
        _zero_pages(Path(folder) / "zeros")
    return fast_enough


def _ordinary_pages(path: Path) -> bool:
    size = _write(path, _STREAM_BYTES // _RECORD_BYTES, zero=False)
    rates: dict[str, list[float]] = {"inspect": [], "cat": []}
    resident = 0
    for _ in range(_ROUNDS):
        seconds, peak = _timed([sys.executable, "-m", "qmpfilter", "inspect", "--json", str(path)])
        rates["inspect"].append(size / seconds)
        resident = max(resident, peak)
        rates["cat"].append(size / _timed(["cat", str(path)])[0])
    ratio = statistics.median(ours / peer for ours, peer in zip(rates["inspect"], rates["cat"], strict=True))
    print(f"inspect, {size / (1 << 30):.2f} GiB of ordinary pages, median of {_ROUNDS} pairs:")
    for name, values in rates.items():
        print(f"  {name:<8} {statistics.median(values) / 1e9:6.2f} GB/s")
    print(f"  ratio inspect / cat  {ratio:.2f}  (wanted: {_WANTED_RATIO} or more)")
    print(f"  resident {resident / (1 << 20):.0f} MiB  (wanted: under {_WANTED_RESIDENT >> 20})")
    return ratio >= _WANTED_RATIO and resident < _WANTED_RESIDENT


def _zero_pages(path: Path) -> None:
    pages = _ZERO_GUEST_BYTES // PAGE_SIZE
    size = _write(path, pages, zero=True)
    seconds = statistics.median(
        _timed([sys.executable, "-m", "qmpfilter", "inspect", "--json", str(path)])[0] for _ in range(_ROUNDS)
    )
    print(f"inspect, all-zero pages ({size / (1 << 20):.0f} MiB of stream):")
    print(f"  {pages * PAGE_SIZE / seconds / 1e9:.1f} GB of guest RAM per second")


def _directory() -> Path | None:
    """Shared memory where it is large enough: it is page cache that no writeback disturbs."""
    if not _SHARED_MEMORY.is_dir():
        return None
    stat = os.statvfs(_SHARED_MEMORY)
    return _SHARED_MEMORY if stat.f_bavail * stat.f_frsize > 2 * _STREAM_BYTES else None


def _write(path: Path, pages: int, *, zero: bool) -> int:
    with path.open("wb") as file:
        for piece in guest_ram(pages, zero=zero):
            file.write(piece)
    return path.stat().st_size


def _timed(command: Sequence[str]) -> tuple[float, int]:
    """Wall seconds of a whole process, start included, and its peak resident size in bytes."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return seconds, usage.ru_maxrss * 1024
