# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a migration passes through the relay, and in how much memory.

The peer is socat with its buffer raised to 1 MiB, between the same kinds of sockets, on the same stream, in turns.
How fast it is with nothing between source and destination tells how much faster than the peer anything there could be
on this machine. The main channel is read on its way; extra channels are only passed on. Memory is that of a relay
through which a guest's RAM passes and the state of 256 vCPUs in L2, every one of which is edited.
"""

from __future__ import annotations

import statistics
from typing import Final

from qmpfilter.wire.ram import PAGE_SIZE
from tests.bench.links import PEER, Link, Passed, Stream, links, passed
from tests.bench.streams import NO_DEVICES, ram_parts
from tests.bench.tails import recorded

__all__ = ["run"]

_BYTES: Final = 2 << 30
_PARTS: Final = 128
_ROUNDS: Final = 5
_VCPUS: Final = 256
_TICK: Final = 0.01
_WANTED_MAIN: Final = 1.0
_WANTED_RAW: Final = 1.5
_WANTED_RESIDENT: Final = 80 << 20


def run() -> bool:
    """Print the figures; True if they are as good as promised."""
    head, part, end = ram_parts(_BYTES // PAGE_SIZE // _PARTS)
    stream = Stream(head, part, _PARTS, end + NO_DEVICES)
    good = True
    print(f"relayed, {stream.size / 1e9:.1f} GB of guest RAM, best of {_ROUNDS} in turns:")
    with links() as makers:
        for make in makers:
            taken: dict[str, list[Passed]] = {"nothing": [], "peer": [], "main": [], "raw": []}
            for _ in range(_ROUNDS):
                for name, passes in taken.items():
                    passes.append(passed(link := make(), _program(name, link), stream))
            most = min(one.seconds for one in taken["peer"]) / min(one.seconds for one in taken["nothing"])
            print(f"  {link.kind}: {PEER:<23} {_rate(stream, taken['peer'])}")
            print(f"  {link.kind}: {'nothing between':<23} {_rate(stream, taken['nothing'])}")
            print(f"  {'':<29} ratio to socat {most:.2f}")
            for name, wanted in (("main", _WANTED_MAIN), ("raw", _WANTED_RAW)):
                good &= _compare(f"{link.kind}: {name} channel", stream, taken[name], taken["peer"], wanted)
        with_tail = Stream(head, part, _PARTS, end + recorded("mid-l2").of(_VCPUS))
        resident = int(passed(link := makers[0](), link.relay(), with_tail).said)
    print(f"  resident, with {_VCPUS} vCPUs in L2 {resident / (1 << 20):.0f} MiB  "
          f"(wanted: under {_WANTED_RESIDENT >> 20})")  # fmt: skip
    return good and resident < _WANTED_RESIDENT


def _program(name: str, link: Link) -> list[str]:
    return {"nothing": list[str], "peer": link.peer, "main": link.relay, "raw": link.pump}[name]()


def _rate(stream: Stream, passes: list[Passed]) -> str:
    seconds = min(one.seconds for one in passes)
    cpu = min(one.cpu for one in passes)
    return f"{stream.size / seconds / 1e9:6.2f} GB/s, {cpu * 1e12 / stream.size:4.0f} ms of processor a GB"


def _compare(what: str, stream: Stream, ours: list[Passed], peers: list[Passed], wanted: float) -> bool:
    """Where source and destination take the processors for themselves, as they do over TCP on a small machine, the
    rate is theirs: there what counts is the processor time that is left to them."""
    rate = min(one.seconds for one in peers) / min(one.seconds for one in ours)
    paired = statistics.median(peer.seconds / one.seconds for one, peer in zip(ours, peers, strict=True))
    cpu = min(one.cpu for one in peers) / max(min(one.cpu for one in ours), _TICK)
    print(f"  {what:<29} {_rate(stream, ours)}")
    print(f"  {'':<29} ratio to socat {rate:.2f}, median of pairs {paired:.2f}, of processor time {cpu:.2f}  "
          f"(wanted: {wanted} or more of one)")  # fmt: skip
    return max(rate, paired, cpu) >= wanted
