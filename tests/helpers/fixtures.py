# SPDX-License-Identifier: GPL-2.0-or-later
"""The recordings in tests/fixtures: real streams of real kernels, with what QEMU said of the same stop."""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DIRECTORY", "Fixture", "fixtures"]

DIRECTORY = Path(__file__).parent.parent / "fixtures"


# What the name of a host with such a kernel ends with.
_SVM2 = "-svm2"


@dataclass(frozen=True)
class Fixture:
    """One recording: `facts` is its entry of the manifest."""

    name: str
    facts: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    def file(self, role: str, number: int = 0) -> bytes:
        """The uncompressed bytes of a file of the recording: stream, save, return, multifd, truth. They are kept."""
        return _kept(*self._entry(role, number))

    def read(self, role: str, number: int = 0) -> bytes:
        """The same, and not kept: all of them together are some 40 MiB."""
        return _read(*self._entry(role, number))

    def _entry(self, role: str, number: int) -> tuple[str, int, str]:
        entry = self.facts["files"][role]
        entry = entry[number] if isinstance(entry, list) else entry
        return entry["file"], entry["bytes"], entry["sha256"]

    def has(self, role: str) -> bool:
        """True if the recording has a file of that role."""
        return role in self.facts["files"]

    def truth(self) -> dict[str, Any]:
        """What QEMU said over QMP at the same stop: `registers` and `vmcb12` by vCPU index."""
        value: dict[str, Any] = json.loads(self.file("truth"))
        return value


def _read(name: str, length: int, sha256: str) -> bytes:
    data = lzma.decompress((DIRECTORY / name).read_bytes())
    if (len(data), hashlib.sha256(data).hexdigest()) != (length, sha256):
        raise AssertionError(f"{name} is not what the manifest says")
    return data


_kept = functools.cache(_read)


def fixtures(*, role: str = "stream", host: str | None = None, svm2: bool = False) -> list[Fixture]:
    """All recordings that have a file of that role: of stock kernels, or of those that emit svm2."""
    manifest = json.loads((DIRECTORY / "manifest.json").read_text())
    every = [Fixture(facts["name"], facts) for facts in manifest["fixtures"]]
    every = [item for item in every if item.facts["host"].endswith(_SVM2) == svm2]
    return [item for item in every if item.has(role) and host in (None, item.facts["host"])]
