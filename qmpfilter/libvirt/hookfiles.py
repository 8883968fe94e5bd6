# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's hook, put where libvirt runs it, beside those of others.

libvirt runs ``hooks/qemu`` and every executable of ``hooks/qemu.d``, whatever its name, each with the output of the
one before. It looks for them when it starts, and again on SIGHUP.

Sources: libvirt 11.3 docs/hooks.rst, src/util/virhook.c; libvirt 6.5 brought ``qemu.d``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qmpfilter.errors import HostError
from qmpfilter.libvirt.daemons import libvirt_processes
from qmpfilter.saveimage.outfile import OutputFile

__all__ = ["HOOKS", "HookPlace", "Installed", "reload_libvirt", "shipped_hook"]

HOOKS: Final = Path("/etc/libvirt/hooks")
"""Compiled into libvirt; daemons of users look there too."""

_NAME: Final = "50-qmpfilter"
_ALONE: Final = "qemu"
_MODE: Final = 0o755
# What editors and package managers leave beside a file: libvirt runs it too, if it may.
_LEFTOVERS: Final = (
    ".dpkg-old", ".dpkg-new", ".dpkg-dist", ".dpkg-bak", ".ucf-old", ".ucf-dist", ".rpmsave", ".rpmnew", ".rpmorig",
    ".bak", ".orig", ".old", ".save", ".swp", "~",
)  # fmt: skip
_MARK: Final = b"tells qmpfilter's daemon what is about to happen"
_SHIPPED: Final = "share/qmpfilter/hooks/qemu"


@dataclass(frozen=True, slots=True)
class Installed:
    """What is there of the hook.

    :param path: where it is, or would be
    :param present: it is there
    :param current: it is the one that is shipped with this qmpfilter, and libvirt may run it
    :param leftovers: other files that libvirt runs too, and most likely should not
    """

    path: Path
    present: bool
    current: bool
    leftovers: tuple[Path, ...]


class HookPlace:
    """A directory of libvirt's hooks.

    :param with_directory: this libvirt runs what is in ``qemu.d``; before 6.5 it runs one file
    """

    def __init__(self, hooks: Path = HOOKS, *, with_directory: bool = True) -> None:
        self._hooks = hooks
        self._path = hooks / f"{_ALONE}.d" / _NAME if with_directory else hooks / _ALONE

    def look(self, shipped: Path) -> Installed:
        """What is there now.

        :param shipped: the hook as it came with qmpfilter
        :raises HostError: it cannot be looked at
        """
        try:
            present = self._path.is_file() and (self._path.name == _NAME or _is_ours(self._path))
            current = present and self._path.read_bytes() == shipped.read_bytes() and _runs(self._path)
            return Installed(self._path, present, current, tuple(self._leftovers()))
        except OSError as error:
            raise HostError(f"{error.filename}: {error.strerror}") from error

    def install(self, shipped: Path) -> bool:
        """Put it there; False if it was there already.

        :raises HostError: it cannot be written, or the place is somebody else's
        """
        if self.look(shipped).current:
            return False
        if self._path.exists() and not _is_ours(self._path):
            raise HostError(
                f"{self._path} is not qmpfilter's, and this libvirt runs no other: have it call {shipped} with the "
                "same arguments and the same standard input, and pass on what that prints and how it exits"
            )
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with OutputFile(str(self._path)) as file:
                file.write(shipped.read_bytes())
                file.commit()
            # Until then libvirt passes over it.
            self._path.chmod(_MODE)
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror or error}") from error
        return True

    def remove(self) -> bool:
        """Take it away; False if it was not there.

        :raises HostError: it cannot be, or is somebody else's
        """
        try:
            if not self._path.exists():
                return False
            if not _is_ours(self._path):
                raise HostError(f"{self._path} is not qmpfilter's")
            self._path.unlink()
            # The directory is libvirt's, and stays unless it holds nothing.
            with contextlib.suppress(OSError):
                if self._path.parent != self._hooks:
                    self._path.parent.rmdir()
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror or error}") from error
        return True

    def _leftovers(self) -> Iterator[Path]:
        directory = self._hooks / f"{_ALONE}.d"
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if path != self._path and _runs(path) and (path.name.endswith(_LEFTOVERS) or _is_ours(path)):
                yield path


def _runs(path: Path) -> bool:
    """libvirt runs it."""
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _is_ours(path: Path) -> bool:
    return _MARK in path.read_bytes()


def shipped_hook() -> Path:
    """The hook as it came with this qmpfilter.

    :raises HostError: it did not
    """
    places = (Path(__file__).parents[2] / "hooks" / _ALONE, Path(sys.prefix) / _SHIPPED, Path("/usr") / _SHIPPED)
    for place in places:
        if place.is_file():
            return place
    raise HostError(f"the hook is in none of {', '.join(map(str, places))}: qmpfilter is not wholly installed")


def reload_libvirt(proc: Path = Path("/proc"), uids: Sequence[int] | None = None) -> list[int]:
    """Have the libvirt daemons of root, or of this user, look for hooks again.

    :param uids: whose; those two if None
    :returns: their processes
    """
    wanted = {0, os.geteuid()} if uids is None else set(uids)
    told = []
    for process in libvirt_processes(proc):
        with contextlib.suppress(OSError):
            if process.stat().st_uid in wanted:
                os.kill(int(process.name), signal.SIGHUP)
                told.append(int(process.name))
    return told
