# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives KVM damaged svm2 records: ``python3 -m inhost.damaged COUNT``.

``out/damaged.json`` has, by kind of damage, the errors of KVM_SET_NESTED_STATE that were not EINVAL, and how often
the state that it left was another one than before; of COUNT mutated records what became of each; what the kernel
logged meanwhile; what svm2=N does; and whether the sound record still restores L2.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from qmpfilter.errors import HostError
from qmpfilter.kvm.device import Kvm, KvmError, Vcpu
from qmpfilter.selftest import guest
from qmpfilter.selftest.case import Case
from qmpfilter.selftest.memory import IN_L1
from qmpfilter.selftest.run import Stop, differences, reach_stop, take, until
from qmpfilter.svm.annex import ANNEX_OFFSET, MAGIC, RECORD
from qmpfilter.svm.legacy import FORMAT_SVM, SIZE_L1, StateFlags
from qmpfilter.svm.vmcb import SAVE

from .exact import load_scrambled

BLOB_PAGE = 0x80
ANNEX = BLOB_PAGE + ANNEX_OFFSET
L2_SAVE = RECORD.offset("vmcb12_save")
SEED = 20261123
#: Every so many accepted ones are run, for a moment.
RUN_EVERY, RUN_SECONDS = 20, 0.002
_OUTSIDE_L2 = (
    StateFlags.GIF_SET.to_bytes(2, "little") + FORMAT_SVM.to_bytes(2, "little") + SIZE_L1.to_bytes(4, "little")
).ljust(SIZE_L1, b"\0")

#: A field of L2's save area, and bits that VMRUN refuses there.
ILLEGAL = {
    "efer": (1 << 40, 0),
    "efer without SVME": (0, 1 << 12),
    "cr0": (1 << 40, 0),
    "cr0 with NW alone": (1 << 29, 1 << 30),
    "cr3": (1 << 55, 0),
    "cr4": (1 << 31, 0),
    "cr4 without PAE": (0, 1 << 5),
    "dr6": (1 << 40, 0),
    "dr7": (1 << 40, 0),
    "cs_attrib with L and D": (3 << 9, 0),
}
#: A field of the record, and a value that is none.
UNKNOWN = {
    "major": 3, "length": 0x37F, "flags": 1 << 31, "validity": 1 << 63, "vmcb_pa": 0x7000,
    "pat": 0x0202_0202_0202_0202,
}  # fmt: skip
RESERVED = ("reserved_cac", "reserved_ce8")
#: What KVM says where a machine is made before all of the last one is gone.
NOISE = ("debugfs: duplicate directory", "kvm_create_vm_debugfs: ")
PARAMETER = Path("/sys/module/kvm_amd/parameters/svm2")


def sealed(record: bytearray, base: bytes) -> bytes:
    """The record with the checksums that its bytes and the page before it ask for."""
    RECORD.put(record, "base_crc", zlib.crc32(base))
    RECORD.put(record, "record_crc", 0)
    RECORD.put(record, "record_crc", zlib.crc32(record))
    return bytes(record)


class Target:
    """A vCPU that is given one state after the other, and between them taken out of L2."""

    def __init__(self, vcpu: Vcpu, before: Stop, sound: bytes) -> None:
        self._vcpu, self._before, self._sound = vcpu, before, sound
        self._outside = self._left()
        self.ready()

    def ready(self) -> None:
        """Registers with which the sound state is taken."""
        self._vcpu.set_nested_state(_OUTSIDE_L2)
        load_scrambled(self._vcpu, self._before.state, self._sound, Random(SEED))
        self._outside = self._left()

    def _left(self) -> bytes:
        self._vcpu.set_nested_state(_OUTSIDE_L2)
        return self._vcpu.nested_state()

    def give(self, blob: bytes) -> tuple[int, bool]:
        """errno of the call, and whether the vCPU is where it was; if the state was taken, it is left again."""
        try:
            self._vcpu.set_nested_state(blob)
        except KvmError as error:
            return error.errno, self._vcpu.nested_state() == self._outside
        return 0, False

    def enter(self, blob: bytes) -> None:
        """Into L2."""
        self._vcpu.set_nested_state(blob)

    def state(self) -> bytes:
        """Nested state as it is now."""
        return self._vcpu.nested_state()

    def leave(self) -> None:
        """Out of L2."""
        self._vcpu.set_nested_state(_OUTSIDE_L2)

    def run(self) -> str:
        """Run what was taken for a moment: how that ended."""
        try:
            reason = self._vcpu.run_for(RUN_SECONDS)
        except HostError as error:
            return str(error)
        return "ran" if reason is None else reason.name


def damages(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """The sound state with one thing wrong, by kind: all of them EINVAL."""
    record, base = bytearray(blob[ANNEX:]), blob[BLOB_PAGE:ANNEX]

    def with_record(changed: bytearray) -> bytes:
        return blob[:ANNEX] + sealed(changed, base)

    for at in range(BLOB_PAGE, len(blob)):
        if not ANNEX <= at < ANNEX + len(MAGIC):
            changed = bytearray(blob)
            changed[at] ^= 1 << at % 8
            yield "a bit of the record" if at >= ANNEX else "a bit before it", bytes(changed)
    for name, value in UNKNOWN.items():
        changed = bytearray(record)
        RECORD.put(changed, name, value)
        yield f"unknown {name}", with_record(changed)
    for name in RESERVED:
        changed = bytearray(record)
        changed[RECORD.span(name).start] = 1
        yield f"unknown {name}", with_record(changed)
    for kind, (set_bits, clear) in ILLEGAL.items():
        changed = bytearray(record)
        name = kind.partition(" ")[0]
        SAVE.put(changed, name, SAVE.get(changed, name, L2_SAVE) & ~clear | set_bits, L2_SAVE)
        yield f"illegal {kind}", with_record(changed)
    yield "another VMCB12's", blob[:8] + (0x7000).to_bytes(8, "little") + blob[16:]


def mutations(blob: bytes, count: int) -> Iterator[bytes]:
    """The sound state with one to four stretches of its record changed, and sound checksums."""
    random = Random(SEED)
    base = blob[BLOB_PAGE:ANNEX]
    fields = [(L2_SAVE + SAVE.offset(name), SAVE.fields[name].size) for name in SAVE.fields]
    fields += [(RECORD.offset(name), 8) for name in ("cr0", "cr3", "cr4", "efer", "pat", "validity")]
    for _ in range(count):
        record = bytearray(blob[ANNEX:])
        for _ in range(random.choice((1, 1, 2, 4))):
            if random.random() < 0.1:
                at, size = random.randrange(len(MAGIC), len(record) - 8), 8
            else:
                at, size = random.choice(fields)
            if random.random() < 0.5:
                record[at : at + size] = random.randbytes(size)
            else:
                record[at + random.randrange(size)] ^= 1 << random.randrange(8)
        yield blob[:ANNEX] + sealed(record, base)


def log() -> list[str]:
    """The kernel's."""
    return subprocess.run(["dmesg", "-t"], check=True, capture_output=True, text=True).stdout.splitlines()


def main(count: int) -> None:
    """The job."""
    told: dict[str, Any] = {}
    case = Case("64-bit")
    with Kvm() as kvm:
        vm, memory, vcpu = guest.prepare(kvm, case)
        with vm, vcpu:
            reach_stop(vcpu, case)
            before, sound = take(vcpu, memory), vcpu.nested_state()
            until(vcpu, IN_L1)
            after = take(vcpu, memory)
        logged = len(log())
        vm, memory, vcpu = guest.start(kvm)
        with vm, vcpu:
            memory.write(0, before.memory)
            target = Target(vcpu, before, sound)
            told["kinds"] = _damage(target, sound)
            told["minor"] = _greater_minor(target, sound)
            told["off"] = _turned_off(target, sound)
            told["mutated"] = _mutate(target, memory, before, sound, count)
        vm, memory, vcpu = guest.start(kvm)
        with vm, vcpu:
            memory.write(0, before.memory)
            load_scrambled(vcpu, before.state, sound, Random(SEED))
            until(vcpu, IN_L1)
            told["sound"] = list(differences(take(vcpu, memory), after, frozenset()))
        told["log"] = [line for line in log()[logged:] if not any(noise in line for noise in NOISE)]
    Path("out/damaged.json").write_text(json.dumps(told))


def _damage(target: Target, sound: bytes) -> dict[str, dict[str, int]]:
    kinds: dict[str, Counter[str]] = {}
    for kind, blob in damages(sound):
        errno, unmoved = target.give(blob)
        kinds.setdefault(kind, Counter())[f"errno {errno}, {'unmoved' if unmoved else 'moved'}"] += 1
        if not unmoved:
            target.ready()
    return {kind: dict(counted) for kind, counted in kinds.items()}


def _greater_minor(target: Target, sound: bytes) -> int:
    """errno for a record of a later minor, with what it may have added."""
    record = bytearray(sound[ANNEX:])
    RECORD.put(record, "minor", 1)
    RECORD.put(record, "flags", RECORD.get(record, "flags") | 1 << 31)
    record[RECORD.span("reserved_cac").start] = 1
    errno, _ = target.give(sound[:ANNEX] + sealed(record, sound[BLOB_PAGE:ANNEX]))
    target.ready()
    return errno


def _turned_off(target: Target, sound: bytes) -> tuple[int, bool]:
    """errno for a damaged record with svm2 off, and whether anything is emitted then."""
    PARAMETER.write_text("N")
    try:
        target.enter(sound)
        emitted = any(target.state()[ANNEX:])
        target.leave()
        return target.give(sound[:-1] + b"\1")[0], emitted
    finally:
        PARAMETER.write_text("Y")
        target.ready()


def _mutate(target: Target, memory: Any, before: Stop, sound: bytes, count: int) -> dict[str, int]:
    outcomes: Counter[str] = Counter()
    for blob in mutations(sound, count):
        errno, unmoved = target.give(blob)
        if errno:
            outcomes[f"errno {errno}, {'unmoved' if unmoved else 'moved'}"] += 1
            continue
        outcomes["taken"] += 1
        if outcomes["taken"] % RUN_EVERY:
            target.leave()
        else:
            outcomes[f"taken, then {target.run()}"] += 1
            memory.write(0, before.memory)
            target.ready()
    return dict(outcomes)


if __name__ == "__main__":
    main(int(sys.argv[1]))
