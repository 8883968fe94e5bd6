# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged recordings: what is not refused comes out as a stream that parses and says the same of every vCPU."""

from __future__ import annotations

import functools
from random import Random

import pytest

from qmpfilter.errors import StreamError
from qmpfilter.filter.carrier import Carrier
from tests.fuzz.mutate import division, mutated
from tests.fuzz.recordings import Recording, names, recording
from tests.helpers.convert import converted, rewritten
from tests.helpers.parse import parse

# With several vCPUs, in a package, and with sections that only vmdesc delimits.
_CHOSEN = [name for name in names() if name.endswith(("-mixed", "-postcopy", "-q35"))]


@functools.cache
def _recording(name: str) -> Recording:
    return recording(name)


@pytest.mark.parametrize("seeds", [40, pytest.param(400, marks=pytest.mark.fuzz)])
def test_damaged_streams_are_refused_or_converted(seeds: int) -> None:
    refused = sum(not _survives(seed) for seed in range(seeds))
    assert 0 < refused < seeds


def _survives(seed: int) -> bool:
    """Damage a recording, which may have been converted before; whether it can be converted then."""
    chance = Random(seed)
    where, other = _recording(chance.choice(_CHOSEN)), _recording(chance.choice(_CHOSEN))
    target = chance.choice(list(Carrier))
    original = where.data if chance.random() < 0.5 else converted(where.data, chance.choice(list(Carrier)))
    data, _ = mutated(original, where, other, chance)
    sizes = division(len(data), chance)
    cuts = {sum(sizes[:count]) for count in range(1, len(sizes))} - {0, len(data)}
    try:
        out, rewriter = rewritten(data, target, sorted(cuts))
    except StreamError:
        return False
    assert parse(out).error is None, seed
    again, second = rewritten(out, target)
    assert again == out, seed
    assert second.edits == 0, seed
    assert [told.index for told in second.vcpus] == [told.index for told in rewriter.vcpus], seed
    return True
