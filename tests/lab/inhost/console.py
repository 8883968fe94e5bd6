# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest prints on COM1, and what it must be.

Lines, numbers in hexadecimal:

* ``S INDEX LETTER`` a vCPU runs; the letter is its mode on the command line
* ``2 INDEX ROUND SUM`` an L2 has verified its registers ROUND times; ``1 INDEX ROUND SUM`` the same of a
  vCPU that stays in L1, and ``3 INDEX ROUND SUM`` of a 32-bit L2
* ``n INDEX NMIS`` how many NMIs an L2 that takes them has taken
* ``v INDEX EXITS`` an L1 took a VMMCALL exit and found its own state whole
* ``! INDEX LEVEL SLOT ...`` a register was corrupted
* ``X INDEX EXITCODE`` an exit that L1 did not ask for
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_MASK = (1 << 64) - 1
_MIX = 0x9E3779B97F4A7C15
_MASK32 = (1 << 32) - 1
_MIX32 = 0x9E3779B1
_LEVEL_32BIT = 3
_TAG = 0xA0

GPRS = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))
MSRS = (
    "FS_BASE",
    "GS_BASE",
    "KERNEL_GS_BASE",
    "STAR",
    "LSTAR",
    "CSTAR",
    "SFMASK",
    "SYSENTER_CS",
    "SYSENTER_ESP",
    "SYSENTER_EIP",
)
SLOTS = (
    *GPRS,
    *(f"XMM{n}.{half}" for n in range(16) for half in ("low", "high")),
    *(f"DR{n}" for n in range(4)),
    "CR2",
    *MSRS,
)
_WORD = frozenset({"SFMASK", "SYSENTER_ESP", "SYSENTER_EIP"})
_CANONICAL = frozenset({"DR0", "DR1", "DR2", "DR3", *MSRS}) - {"STAR", *MSRS[6:]}

_LINE = re.compile(r"^([123]) ([0-9a-f]) ([0-9a-f]{16}) ([0-9a-f]{16})$")
_INJECTS = "r"  # this mode's L2 prints nothing; each of its exits is a round


class Corruption(Exception):
    """The guest says, or its checksum shows, that a register is not what it was."""


@dataclass
class Progress:
    """What a console said: rounds per vCPU, in the order printed."""

    rounds: dict[int, list[int]] = field(default_factory=dict)
    modes: dict[int, str] = field(default_factory=dict)
    exits: dict[int, int] = field(default_factory=dict)
    nmis: dict[int, int] = field(default_factory=dict)


def slot_value(level: int, index: int, name: str, context: int) -> int:
    """The value the guest keeps in a register (a name of SLOTS) at a level on a vCPU.

    ``context`` is the address of the vCPU's context page, the value of RSP.
    """
    if name == "RSP":
        return context
    head = (_TAG + level) << 16 | index << 8 | SLOTS.index(name)
    value = head << 40 | (head * _MIX & _MASK) >> 24
    if name in _CANONICAL:
        return 0xFFFF << 48 | value >> 16
    if name in _WORD:
        return value >> 32
    if name == "SYSENTER_CS":
        return value & 0xFFFF
    return value


def checksum(level: int, index: int, rounds: int, context: int) -> int:
    """The sum that a worker prints after so many rounds if nothing was corrupted."""
    if level == _LEVEL_32BIT:
        return _checksum32(index, rounds, context)
    total = rounds
    for name in SLOTS:
        total = (total << 7 | total >> 57) & _MASK
        total = (total ^ slot_value(level, index, name, context)) * _MIX & _MASK
    return total


def slot_value32(index: int, name: str, context: int) -> int:
    """The value a 32-bit L2 keeps in the lower half of a register (a name of GPRS up to RDI)."""
    return context if name == "RSP" else slot_value(_LEVEL_32BIT, index, name, context) >> 32


def _checksum32(index: int, rounds: int, context: int) -> int:
    total = rounds
    for name in GPRS[:8]:
        total = (total << 7 | total >> 25) & _MASK32
        total = (total ^ slot_value32(index, name, context)) * _MIX32 & _MASK32
    return total


def read_console(text: str, contexts: int) -> Progress:
    """Checks every whole line; raises Corruption for ``!`` and ``X`` lines and for a wrong checksum.

    ``contexts`` is the address of the guest's symbol of that name.
    """
    progress = Progress()
    whole, _, _ = text.rpartition("\n")
    for line in whole.splitlines():
        if line[:1] in ("!", "X"):
            raise Corruption(f"the guest says: {line}{_slot_in(line)}")
        if line.startswith("S "):
            _, index, letter = line.split()
            progress.modes[int(index, 16)] = letter
        elif line.startswith("v "):
            vcpu, exits = (int(word, 16) for word in line.split()[1:])
            progress.exits[vcpu] = exits
            if progress.modes.get(vcpu) == _INJECTS:
                progress.rounds.setdefault(vcpu, []).append(exits)
        elif line.startswith("n "):
            vcpu, nmis = (int(word, 16) for word in line.split()[1:])
            progress.nmis[vcpu] = nmis
        elif match := _LINE.match(line):
            level, vcpu, rounds = int(match[1]), int(match[2], 16), int(match[3], 16)
            expected = checksum(level, vcpu, rounds, contexts + (2 * vcpu + 1) * 4096)
            if int(match[4], 16) != expected:
                raise Corruption(f"checksum in {line!r} is not {expected:016x}")
            progress.rounds.setdefault(vcpu, []).append(rounds)
    return progress


def _slot_in(line: str) -> str:
    words = line.split()
    if words[0] != "!" or len(words) < 4 or int(words[3], 16) >= len(SLOTS):
        return ""
    return f" ({SLOTS[int(words[3], 16)]})"
