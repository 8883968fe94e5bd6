# SPDX-License-Identifier: GPL-2.0-or-later
"""Twenty thousand damaged recordings, in processes without pytest, whose memory is therefore the parser's."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from qmpfilter.errors import StreamError
from qmpfilter.wire.returnpath import ReturnPathEvent, ReturnPathParser
from tests.fuzz.mutate import division
from tests.fuzz.recordings import names, recording
from tests.fuzz.worker import SHARES, case
from tests.helpers.fixtures import fixtures
from tests.helpers.parse import Parsed, merged, parse, rejoined, told_by

ROOT = Path(__file__).parent.parent.parent
CASES = 20_000
PARTS = 5
"""In which every worker's cases are divided, so that no processor waits long for the other."""
DIVIDED_CASES = 520
DIVIDED_GROUPS = 4
RETURN_CASES = 4_000

pytestmark = pytest.mark.fuzz


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("share", range(SHARES))
def test_every_damaged_stream_is_read_or_refused(share: int, part: int) -> None:
    """Each ends with a StreamError or completely, in less than a second and in 64 MiB."""
    cases = CASES // SHARES // PARTS
    first = (share * PARTS + part) * cases
    seeds = f"{first}:{first + cases}"
    command = [sys.executable, "-m", "tests.fuzz.worker", "--share", f"{share}/{SHARES}", "--seeds", seeds]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, f"python -m tests.fuzz.worker {done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("group", range(DIVIDED_GROUPS))
def test_the_division_of_the_input_changes_nothing(group: int) -> None:
    """The same events, put together, and the same kind of error at the same place."""
    few = names()[group::DIVIDED_GROUPS][:4]
    recordings = {name: recording(name) for name in names()}
    for number in range(DIVIDED_CASES // DIVIDED_GROUPS):
        name, seed = few[number % len(few)], 1_000_000 + group * DIVIDED_CASES + number
        data, _, done = case(recordings, name, seed)
        whole = parse(data)
        chance = Random(seed)
        divisions = [_cuts(division(len(data), chance)) for _ in range(2)]
        for cuts in (*divisions, _around_the_end(data, whole)):
            divided = parse(data, cuts)
            where = f"--fixture {name} --seed {seed}: {done}, cut at {cuts[:20]}"
            assert divided.fault == whole.fault, where
            assert merged(divided.events) == merged(whole.events), where
            assert data.startswith(rejoined(divided.events)), where


def _cuts(pieces: list[int]) -> list[int]:
    return list(itertools.accumulate(pieces[:-1]))


def _around_the_end(data: bytes, whole: Parsed) -> list[int]:
    """One byte at a time around where the parser stopped."""
    stopped = whole.error.offset if whole.error else len(data) // 2
    return list(range(max(1, stopped - 40), min(len(data), stopped + 300)))


def _return_paths() -> Iterator[bytes]:
    yield from (item.read("return") for item in fixtures(role="return"))
    block = b"\x06pc.ram"
    yield (
        b"\x00\x02\x00\x04\x00\x00\x00\x01"
        b"\x00\x03\x00\x13"
        + bytes(8)
        + b"\x00\x00\x10\x00"
        + block
        + b"\x00\x04\x00\x0c"
        + bytes(8)
        + b"\x00\x00\x10\x00"
        b"\x00\x05\x00\x07"
        + block
        + b"\x00\x00\x00\x00\x00\x00\x00\x10"
        + bytes(16)
        + b"\x01\x23\x45\x67\x89\xab\xcd\xef"
        b"\x00\x06\x00\x04\x00\x00\x00\x00\x00\x07\x00\x00\x00\x01\x00\x04\x00\x00\x00\x00"
    )


def test_every_damaged_return_path_is_read_or_refused() -> None:
    """And however it is divided, with the same messages and the same error."""
    paths = list(_return_paths())
    for seed in range(RETURN_CASES):
        chance = Random(seed)
        data = _damaged(chance.choice(paths), paths, chance)
        whole = _messages(data, None)
        divided = _messages(data, chance.randint(1, 9))
        assert divided == whole, f"seed {seed}: {data.hex(' ')}"


def _damaged(data: bytes, paths: list[bytes], chance: Random) -> bytes:
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + bytes([chance.choice((0, 1, 5, 7, 0xFF, chance.randrange(256)))]) + data[at + 1 :]
            case 2:
                data = data[:at] + chance.choice((b"\xff" * 2, b"\x7f" + b"\xff" * 7, bytes(8))) + data[at + 8 :]
            case 3:
                data = data[:at] + chance.choice(paths) + data[at:]
            case _:
                data = data[:at] + data[at : at + chance.randint(1, 40)] + data[at:]
    return data


def _messages(data: bytes, chunks: int | None) -> tuple[bytes, list[str], tuple[type[StreamError], int] | None]:
    """The bytes told, the messages by kind, stretches of one bitmap as one, and the error."""
    events: list[ReturnPathEvent]
    events, error = told_by(ReturnPathParser(), data, chunks)
    kinds: list[str] = []
    for event in events:
        kind = f"{type(event).__name__} {getattr(event, 'type', '')} {getattr(event, 'block', '')!r}"
        if not (kind.startswith("Bitmap") and kinds and kinds[-1] == kind):
            kinds.append(kind)
    told = rejoined(events)
    assert data.startswith(told)
    return told, kinds, None if error is None else (type(error), error.offset)
