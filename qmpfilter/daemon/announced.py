# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains that are about to arrive: from libvirt's ``migrate begin`` until their QEMU runs.

Only before the QEMU of one of them anything is put. Each is a file too, ``RUNTIME/arrivals/UUID``, so that a daemon
that is started in between knows of it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final

__all__ = ["Announced"]

_log: Final = logging.getLogger(__name__)

_UUID: Final = re.compile(r"[0-9A-Fa-f-]+")


class Announced:
    """Sessions by the uuids of the domains that are about to arrive.

    :param directory: for the files; made when it is needed
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sessions: dict[str, str] = {}

    def add(self, uuid: str, session: str) -> None:
        """A domain is about to arrive. Where no file can be written, only this daemon knows."""
        self._sessions[uuid] = session
        if (path := self._path(uuid)) is not None:
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.write_text(session)
            except OSError as error:
                _log.warning("%s: a restart will not know of this arrival: %s", path, error.strerror or error)

    def __contains__(self, uuid: str) -> bool:
        path = self._path(uuid)
        return uuid in self._sessions or (path is not None and path.exists())

    def take(self, uuid: str) -> str | None:
        """The session that was announced for a domain, which then is not announced any more; None if none was."""
        session = self._sessions.pop(uuid, None)
        if (path := self._path(uuid)) is not None:
            try:
                session = session or path.read_text(errors="replace")
                path.unlink()
            except FileNotFoundError:
                pass
            except OSError as error:
                _log.warning("%s: %s", path, error.strerror or error)
        return session

    def _path(self, uuid: str) -> Path | None:
        return self._directory / uuid if _UUID.fullmatch(uuid) else None
