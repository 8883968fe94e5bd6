# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the relay holds back the commit point, while the guest stands still.

The tail of a recorded stream, made into one of a machine with more vCPUs, all in L2, is given all at once, and every
vCPU is judged, converted and verified. The peer is construct's own parsing of what a conversion reads of one vCPU, in
turns with it. The median of the turns' ratios decides; the times are what it means where construct takes some 630 us,
on a quiet core.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Final

from qmpfilter.filter.gate import Gate
from qmpfilter.filter.policy import Policy
from qmpfilter.svm.section import CpuSection
from qmpfilter.verdict.facts import HostFacts, QemuBinary
from qmpfilter.verdict.version import Version
from qmpfilter.wire import cpu
from tests.bench.conversion import parsed
from tests.bench.tails import recorded

__all__ = ["run"]

_RECORDING: Final = "mid-l2"
_VCPUS: Final = (1, 16, 64, 256)
_TURNS: Final = 25
# In each turn, so that it takes about as long as 256 vCPUs do.
_PARSED: Final = 60
_READ_AT_ONCE: Final = 1 << 20
_WANTED: Final = 50e-3
# 50 ms are 79 times 630 us.
_WANTED_RATIO: Final = 79.0
_FACTS: Final = {
    "facts unknown": HostFacts(),
    "facts known": HostFacts(
        kernel=Version(6, 12, 117),
        parameters={"kvm_amd": {"nested": "1", "npt": "1"}},
        nested_state_size=0x1080,
        maxphyaddr=48,
        qemu=(QemuBinary("/usr/bin/qemu-system-x86_64", Version(10, 0, 2)),),
    ),
}


def run() -> bool:
    """Print the figures; True if they are as good as promised."""
    one = recorded(_RECORDING)
    told = CpuSection.of(next(section for section in one.sections if section.idstr == cpu.IDSTR))
    assert told.nested is not None
    assert told.nested.page is not None
    page = told.nested.page
    print(f"commit point held back, all vCPUs in L2, in {_TURNS} turns, the shortest and the median of the ratios:")
    good = True
    # A migration has a process of its own, which ends with it: there is no garbage worth looking for.
    gc.collect()
    gc.disable()
    try:
        for name, facts in _FACTS.items():
            for vcpus in _VCPUS:
                tail = one.of(vcpus)
                turns = [
                    (parsed(page, told.block, _PARSED), _held(one.head, tail, facts, vcpus)) for _ in range(_TURNS)
                ]
                peer, held = map(min, zip(*turns, strict=True))
                ratio = statistics.median(held / peer for peer, held in turns)
                print(f"  {name}, {vcpus:>3} vCPUs {held * 1e3:7.1f} ms, {ratio:6.1f} times construct's "
                      f"{peer * 1e6:.0f} us", end="")  # fmt: skip
                if vcpus == _VCPUS[-1]:
                    print(f"  (wanted: {_WANTED * 1e3:.0f} ms and {_WANTED_RATIO:.0f} times or less)", end="")
                    good &= ratio <= _WANTED_RATIO
                print()
    finally:
        gc.enable()
    return good


def _held(head: bytes, tail: bytes, facts: HostFacts, vcpus: int) -> float:
    """Seconds from the first byte of the tail to the piece with which the destination may start the guest."""
    gate = Gate(Policy(facts=facts, without_return_path=True))
    for _ in gate.receive_data(memoryview(head)):
        pass
    given = memoryview(tail)
    start = time.perf_counter()
    for at in range(0, len(given), _READ_AT_ONCE):
        for piece in gate.receive_data(given[at : at + _READ_AT_ONCE]):
            if piece.commit:
                seconds = time.perf_counter() - start
                if gate.edits != vcpus:
                    raise RuntimeError(f"{gate.edits} of {vcpus} vCPUs were edited")
                return seconds
    raise RuntimeError("the commit point never came")
