# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU says of a stopped vCPU (`info registers`), and the same names from a decoded section."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qmpfilter.inspect.vcpu import Vcpu
from qmpfilter.wire.cpu import GENERAL_REGISTERS

__all__ = ["decoded_registers", "spoken_mask", "spoken_registers"]

# Values are tuples of what stands after the name: a register's number, or a segment's selector, base,
# limit and flags, or an x87 register's mantissa and exponent, or a vector register's high and low half.
Registers = dict[str, tuple[int, ...]]

_SEGMENT = re.compile(r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *= *([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+)", re.M)
_TABLE = re.compile(r"^(GDT|IDT) *= *([0-9a-f]+) ([0-9a-f]+)", re.M)
_WIDE = re.compile(r"\b(FPR\d|XMM\d\d)=([0-9a-f]+) ([0-9a-f]+)")
# In 16 and 32 bit modes the names begin with E, and fewer registers are shown.
_PLAIN = re.compile(r"\b([RE](?:AX|BX|CX|DX|SI|DI|BP|SP|IP|FL)|R\d+|CR\d|DR\d|EFER|F[CST]W|MXCSR|SMM) *=([0-9a-f]+)")


_NARROW = ("EAX", "EBX", "ECX", "EDX", "ESI", "EDI", "EBP", "ESP", "EIP", "EFL")


def spoken_registers(text: str) -> Registers:
    """Parse the text of QEMU's monitor command `info registers` for one vCPU."""
    found: Registers = {}
    for pattern in (_SEGMENT, _TABLE, _WIDE, _PLAIN):
        for match in pattern.finditer(text):
            name = match[1].replace("E", "R", 1) if match[1] in _NARROW else match[1]
            found[name] = tuple(int(part, 16) for part in match.groups()[1:])
    return found


def spoken_mask(text: str) -> int:
    """The bits of a register that are shown: the lower half outside of 64-bit mode."""
    return (1 << 32) - 1 if "EAX=" in text else (1 << 64) - 1


def decoded_registers(vcpu: Vcpu, mask: int) -> Registers:
    """The registers of a decoded `cpu` section under the names of `info registers`.

    :param mask: of the general and control registers and of the bases
    """
    return dict(_decoded(vcpu, mask))


def _decoded(vcpu: Vcpu, mask: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    values = vcpu.registers
    for name in (*GENERAL_REGISTERS, "rip", "cr0", "cr2", "cr3", "cr4"):
        yield name.upper(), (values[name] & mask,)
    for name in ("efer", "fcw", "mxcsr"):
        yield name.upper(), (values[name],)
    for number in (0, 1, 2, 3, 6, 7):
        yield f"DR{number}", (values[f"dr{number}"],)
    yield "RFL", (values["rflags"],)
    yield "SMM", (int(vcpu.in_smm),)
    # The monitor shows the status word without the top of stack, and the tag word as sent: 1 is valid.
    yield "FSW", (values["fsw"],)
    yield "FTW", (values["ftw"],)
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr"):
        selector, base, limit, flags = (values[f"{name}_{part}"] for part in ("selector", "base", "limit", "flags"))
        yield name.upper(), (selector, base & mask, limit, flags)
    for name in ("gdt", "idt"):
        yield name.upper(), (values[f"{name}_base"], values[f"{name}_limit"])
    for number, register in enumerate(values["fpregs"]):
        yield f"FPR{number}", (register["mantissa"], register["exponent"])
    for number, half in enumerate(values["xmm"]):
        yield f"XMM{number:02d}", (half["high"], half["low"])
