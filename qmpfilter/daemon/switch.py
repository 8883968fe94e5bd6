# SPDX-License-Identifier: GPL-2.0-or-later
"""The kill switch of this host, a file that two may make: the operator here, and the cluster for all hosts.

The cluster's own is known by what it holds and by its time, which no clock has: an operator's ``touch`` changes that,
and so makes the file the operator's, which the cluster does not remove.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

from qmpfilter.errors import HostError

__all__ = ["KillSwitch"]

_OURS: Final = b"all hosts of the cluster\n"
_MOMENT: Final = 1


class KillSwitch:
    """The file.

    :raises HostError: (all methods) the directory cannot be written to
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def follow(self, off: bool) -> None:
        """Be on or off as the cluster says, for as far as that is its own."""
        try:
            if off:
                self._make()
            elif self.is_clusters:
                self._remove()
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror or error}") from error

    def take(self) -> None:
        """Make it the operator's, whoever's it was."""
        try:
            self._path.touch(mode=0o644)
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror or error}") from error

    def release(self) -> None:
        """The operator's end of it."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror or error}") from error

    @property
    def is_clusters(self) -> bool:
        """It is there, and the cluster's."""
        return _is_ours(self._path)

    def _make(self) -> None:
        if self._path.exists():
            return
        part = self._hidden()
        try:
            part.write_bytes(_OURS)
            os.utime(part, ns=(_MOMENT, _MOMENT))
            # A link, not a rename: the operator's may have come in between.
            with contextlib.suppress(FileExistsError):
                os.link(part, self._path)
        finally:
            part.unlink(missing_ok=True)

    def _remove(self) -> None:
        part = self._hidden()
        try:
            self._path.rename(part)
            if not _is_ours(part):
                # Touched in between.
                with contextlib.suppress(FileExistsError):
                    os.link(part, self._path)
        except FileNotFoundError:
            pass
        finally:
            part.unlink(missing_ok=True)

    def _hidden(self) -> Path:
        return self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")


def _is_ours(path: Path) -> bool:
    try:
        return path.stat().st_mtime_ns == _MOMENT and path.read_bytes() == _OURS
    except OSError:
        return False
