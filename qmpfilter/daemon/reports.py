# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of ended sessions: one JSON file each, ``STATE/sessions/ID.json``, pruned by age and by number."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from qmpfilter.daemon.config import Keep
from qmpfilter.errors import HostError
from qmpfilter.saveimage.outfile import OutputFile

__all__ = ["Reports", "is_name", "new_name"]

_log: Final = logging.getLogger(__name__)

_NAME: Final = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")
_DAY: Final = 86400.0
# A report of some hundred vCPUs is less than a megabyte.
_MOST: Final = 64 << 20


def new_name() -> str:
    """A name for a session: when it began (UTC), so that names sort by time, and a number by chance."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def is_name(text: str) -> bool:
    """It is the name of a session, and so safe as one of a file."""
    return _NAME.fullmatch(text) is not None


class Reports:
    """The reports in a directory, which is made for its owner alone.

    :raises HostError: it cannot be made
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"{directory}: {error.strerror or error}") from error

    def path(self, name: str) -> Path:
        """Where a session's report is, or will be."""
        return self._directory / f"{name}.json"

    def names(self) -> list[str]:
        """The sessions that have a report, the newest first."""
        found = [path.stem for path in self._directory.glob("*.json") if is_name(path.stem)]
        return sorted(found, reverse=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """A session's report, None if it has none.

        :raises HostError: it cannot be read
        """
        path = self.path(name)
        try:
            with path.open("rb") as file:
                report = json.loads(file.read(_MOST))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(f"{path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise HostError(f"{path}: a damaged report: {error}") from error
        if not isinstance(report, dict) or report.get("session") != name:
            raise HostError(f"{path}: not the report of session {name}")
        return report

    def write(self, name: str, report: dict[str, Any]) -> None:
        """:raises HostError: it cannot be written"""
        with OutputFile(str(self.path(name))) as file:
            file.write(json.dumps(report, indent=1).encode() + b"\n")
            file.commit()

    def prune(self, keep: Keep) -> None:
        """Remove what is not to be kept."""
        now = time.time()
        doomed = [self.path(name) for name in self.names()[keep.count :]]
        doomed += [self.path(name) for name in self.names() if _is_older(self.path(name), now - keep.days * _DAY)]
        # What a writer left that was killed.
        doomed += [path for path in self._directory.glob(".*.part") if _is_older(path, now - _DAY)]
        for path in doomed:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                _log.warning("%s: %s", path, error.strerror or error)


def _is_older(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except OSError:
        return False
