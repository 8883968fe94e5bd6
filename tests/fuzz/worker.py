# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs damaged recordings through all that `qmpfilter inspect` does, in a process of its own.

::

    python -m tests.fuzz.worker --share 0/2 --seeds 0:10000    on every second recording, seed after seed
    python -m tests.fuzz.worker --fixture mid-l2 --seed 4711   one case again

Ends with status 1 at the first case that is neither read completely nor refused with a StreamError, that takes
over a second, or whose events are not the input; or at the end if the process had more resident than allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

from qmpfilter.errors import StreamError
from qmpfilter.inspect.as_json import report_as_json
from qmpfilter.inspect.as_text import render
from qmpfilter.inspect.collect import Report
from qmpfilter.wire.feed import NeedData
from qmpfilter.wire.parser import StreamParser
from tests.fuzz.mutate import division, mutated
from tests.fuzz.recordings import Recording, names, recording

__all__ = ["MOST_RESIDENT", "MOST_SECONDS", "SHARES", "case", "check", "inspected", "main", "resident"]

MOST_RESIDENT: Final = 64 << 20
MOST_SECONDS: Final = 1.0
SHARES: Final = 2
_TEXT_EVERY: Final = 20
_STATUS: Final = Path("/proc/self/status")


class Wrong(Exception):
    """A case that did not do what every case must."""


class _Recordings(dict[str, Recording]):
    """Recordings by name, loaded when first needed; `chosen` at once, so that their time is no case's."""

    def __init__(self, chosen: Iterable[str]) -> None:
        super().__init__()
        for name in chosen:
            self[name] = recording(name)

    def __missing__(self, name: str) -> Recording:
        self[name] = recording(name)
        return self[name]


def case(recordings: dict[str, Recording], name: str, seed: int) -> tuple[bytes, list[int], str]:
    """The damaged stream of a seed, the pieces it is fed in, and what was done to it."""
    chance = Random(f"{name} {seed}")
    where = recordings[name]
    other = recordings[chance.choice(partners(name))]
    data, done = mutated(where.data, where, other, chance)
    return data, division(len(data), chance), done


def partners(name: str) -> list[str]:
    """The recordings whose parts are put into this one: every second one, so that a worker needs no others."""
    every = names()
    return every[every.index(name) % SHARES :: SHARES]


def inspected(data: bytes, pieces: list[int]) -> Report:
    """The report on a stream; checks that the events' bytes are the input.

    :raises Wrong: they are not
    """
    report = Report()
    at = 0
    try:
        for event in _fed(data, pieces):
            if event.offset != at or event.raw != data[at : at + len(event.raw)]:
                raise Wrong(f"the event at {event.offset:#x} is not the input at {at:#x}")
            at += len(event.raw)
            report.add(event)
    except StreamError as error:
        report.error = error
        if not 0 <= error.offset <= len(data):
            raise Wrong(f"an error outside of the {len(data)} bytes of input: {error}") from error
        return report
    if at != len(data) or not report.complete:
        raise Wrong(f"no error, but {at} of {len(data)} bytes were told, complete: {report.complete}")
    return report


def _fed(data: bytes, pieces: list[int]) -> Iterator[Any]:
    parser = StreamParser()
    view = memoryview(data)
    at = 0
    for size in (*pieces, 0):
        if size:
            parser.receive_data(view[at : at + size])
            at += size
        else:
            parser.receive_eof()
        while not isinstance(event := parser.next_event(), NeedData):
            yield event


def check(data: bytes, pieces: list[int], *, text: bool) -> str:
    """Do with a stream all that the command does; returns how it ended.

    :raises Wrong: it took too long, or the output is not fit to be printed
    """
    start = time.process_time()
    report = inspected(data, pieces)
    about = {"kind": "migration stream", "compression": None, "stream_bytes": len(data), "domain": None}
    outputs = [json.dumps(report_as_json(report, about), indent=1)]
    seconds = time.process_time() - start
    if text:
        outputs.append(render(report, about, terminal=False, dumps=True))
    if report.error is not None:
        outputs.append(str(report.error))
    if seconds > MOST_SECONDS:
        raise Wrong(f"{seconds:.2f} seconds")
    for output in outputs:
        if not output.replace("\n", "").isprintable():
            raise Wrong("control characters in the output")
    return type(report.error).__name__ if report.error else "complete"


def resident() -> int:
    """The most bytes this process ever had resident.

    Not from getrusage: what that says of a process begins with what the one that started it had.
    """
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no VmHWM in {_STATUS}")


def main() -> int:
    """Run what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.worker")
    parser.add_argument("--fixture", help="only this recording")
    parser.add_argument("--share", default="0/1", metavar="K/N", help="every N-th recording, from the K-th on")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="one case")
    which.add_argument("--seeds", metavar="FIRST:END", help="a range of cases")
    options = parser.parse_args()
    first, end = map(int, options.seeds.split(":")) if options.seeds else (options.seed, options.seed + 1)
    share, shares = map(int, options.share.split("/"))
    chosen = [options.fixture] if options.fixture else names()[share::shares]
    recordings = _Recordings(chosen)
    ends: Counter[str] = Counter()
    start, slowest = time.monotonic(), (0.0, "")
    for seed in range(first, end):
        name = chosen[seed % len(chosen)]
        data, pieces, done = case(recordings, name, seed)
        begun = time.process_time()
        try:
            ends[check(data, pieces, text=seed // len(chosen) % _TEXT_EVERY == 0 or first + 1 == end)] += 1
        except Exception as error:
            print(f"--fixture {name} --seed {seed}: {done}: {type(error).__name__}: {error}")
            traceback.print_exc(file=sys.stdout)
            if first + 1 == end:
                path = Path(tempfile.gettempdir()) / f"{name}-{seed}.stream"
                path.write_bytes(data)
                print(f"the damaged stream is in {path}")
            return 1
        slowest = max(slowest, (time.process_time() - begun, f"--fixture {name} --seed {seed}: {done}"))
    most = resident()
    print(f"{end - first} cases in {time.monotonic() - start:.1f} s, {most >> 20} MiB resident; {dict(ends)}")
    print(f"slowest: {slowest[0]:.3f} s, {slowest[1]}")
    if most > MOST_RESIDENT:
        print(f"--seeds {first}:{end}: {most} bytes resident, more than {MOST_RESIDENT}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
