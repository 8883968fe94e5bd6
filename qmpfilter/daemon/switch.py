# SPDX-License-Identifier: GPL-2.0-or-later
"""The kill switch of this host, a file that two may make: the operator here, and the cluster for all hosts.

The cluster's own is known by what it holds and by its time, which no clock has: an operator's ``touch`` changes that,
and so makes the file the operator's, which the cluster does not remove.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path
from typing import Final

from qmpfilter.errors import HostError

__all__ = ["ClustersSwitch", "KillSwitch"]

_log: Final = logging.getLogger(__name__)

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
    def is_on(self) -> bool:
        """It is there, whoever's it is: what migrations that run look at."""
        try:
            return self._path.exists()
        except OSError:
            return False

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


class ClustersSwitch:
    """The cluster's part of it: what the cluster says is done here, and tried again for as long as it is not.

    :ivar heard: the cluster was asked since this daemon was started. Before that the file is not removed: what is
        remembered may be less than what was known when it was made
    :ivar ailing: why what the cluster says is not done, a sentence; empty if it is
    """

    def __init__(self, switch: KillSwitch) -> None:
        self.heard = False
        self.ailing = ""
        self._switch = switch

    def follow(self, off: bool) -> None:
        """Do what the cluster says."""
        if not off and not self.heard:
            return
        ailing = ""
        try:
            self._switch.follow(off)
        except HostError as error:
            ailing = f"the cluster's kill switch cannot be {'turned on' if off else 'ended'} here: {error}"
        if ailing and ailing != self.ailing:
            _log.error("cluster: %s", ailing)
        self.ailing = ailing

    def holds(self, off: bool) -> bool:
        """Everything passes here for the cluster's sake, as running migrations see it.

        :param off: what the cluster says
        """
        return self._switch.is_on if off else self._switch.is_clusters

    @property
    def unheard(self) -> str:
        """Why everything passes though nobody knows whether the cluster still says so; empty if it is not so."""
        if self.heard or not self._switch.is_clusters:
            return ""
        return "all hosts were switched off, and the cluster's store was not reached since the daemon was started"


def _is_ours(path: Path) -> bool:
    try:
        return path.stat().st_mtime_ns == _MOMENT and path.read_bytes() == _OURS
    except OSError:
        return False
