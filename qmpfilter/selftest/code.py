# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine code of the guests: the few instructions that they need, by name.

Source: AMD64 Architecture Programmer's Manual, volume 3.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "CLGI",
    "RSM",
    "VMLOAD",
    "VMMCALL",
    "VMRUN",
    "VMSAVE",
    "count_at",
    "jump_back",
    "out_al",
    "store_rax",
]

VMRUN: Final = bytes.fromhex("0f01d8")  # rax is the address of the VMCB
VMMCALL: Final = bytes.fromhex("0f01d9")
VMLOAD: Final = bytes.fromhex("0f01da")  # rax is the address of the VMCB
VMSAVE: Final = bytes.fromhex("0f01db")  # rax is the address of the VMCB
CLGI: Final = bytes.fromhex("0f01dd")
RSM: Final = bytes.fromhex("0faa")


def out_al(port: int) -> bytes:
    """OUT of AL to an immediate port."""
    return bytes([0xE6, port])


def store_rax(displacement: int, value: int) -> bytes:
    """MOV of a 32-bit immediate to [rax + displacement], in 64-bit mode."""
    return bytes.fromhex("c780") + displacement.to_bytes(4, "little") + value.to_bytes(4, "little")


def count_at(address: int) -> bytes:
    """INC of the 32 bits at an absolute address, in 64-bit mode."""
    return bytes.fromhex("ff0425") + address.to_bytes(4, "little")


def jump_back(size: int) -> bytes:
    """A jump to `size` bytes before this instruction."""
    return b"\xe9" + (-size - 5).to_bytes(4, "little", signed=True)
