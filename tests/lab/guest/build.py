# SPDX-License-Identifier: GPL-2.0-or-later
"""Assembles and links the L1 guest."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCES = (
    "boot",
    "l1",
    "worker",
    "worker32",
    "inject",
    "console",
)  # boot first: the multiboot header has to lie at the front
LOAD_ADDRESS = 0x100000
TOOL_SECONDS = 60.0
_SYMBOL = re.compile(r"^([0-9a-f]{16}) [bBdDtTrR] (\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class Guest:
    """The multiboot image and the guest-physical addresses of its symbols."""

    elf: bytes
    symbols: dict[str, int]


@cache
def build_guest() -> Guest:
    """Builds the guest from the sources beside this file; raises CalledProcessError with the tool's words."""
    here = Path(__file__).parent
    with TemporaryDirectory() as scratch:
        work = Path(scratch)
        for name in SOURCES:
            _tool("as", "--64", "-I", here, "-o", work / f"{name}.o", here / f"{name}.S")
        objects = [work / f"{name}.o" for name in SOURCES]
        _tool(
            "ld", "-m", "elf_x86_64", "--nmagic", "-z", "noexecstack", f"-Ttext={LOAD_ADDRESS:#x}",
            "-o", work / "l1.elf64", *objects,
        )  # fmt: skip
        symbols = {name: int(value, 16) for value, name in _SYMBOL.findall(_tool("nm", work / "l1.elf64"))}
        # The multiboot loader takes 32-bit ELF files alone.
        _tool("objcopy", "--strip-all", "-O", "elf32-i386", work / "l1.elf64", work / "l1.elf")
        return Guest((work / "l1.elf").read_bytes(), symbols)


def _tool(*argv: str | Path) -> str:
    result = subprocess.run(
        [str(word) for word in argv], check=True, capture_output=True, text=True, timeout=TOOL_SECONDS
    )
    return result.stdout
