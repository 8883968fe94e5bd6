# SPDX-License-Identifier: GPL-2.0-or-later
"""The libvirt daemons of this host that have domains of QEMU, as /proc tells of them.

Source: libvirt 11.3 docs/daemons.rst (``libvirtd``, the monolithic one, and ``virtqemud``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["libvirt_processes"]

_NAMES: Final = ("libvirtd", "virtqemud")


def libvirt_processes(proc: Path) -> Iterator[Path]:
    """Their directories in /proc; each may have ended since."""
    for process in proc.iterdir():
        try:
            if process.name.isdigit() and process.joinpath("comm").read_text().strip() in _NAMES:
                yield process
        except OSError:
            # It has ended.
            continue
