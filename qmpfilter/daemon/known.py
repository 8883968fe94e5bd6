# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host knows of its cluster, in memory and on the disk: a daemon that starts while the store is away goes on
with what the one before it knew.

The file's time is when the store was last heard, so that it is written only when something changed.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qmpfilter.cluster.form import Fields, dumped
from qmpfilter.cluster.host import HostRecord
from qmpfilter.cluster.rollout import Rollout, Switch
from qmpfilter.errors import HostError
from qmpfilter.saveimage.outfile import OutputFile

__all__ = ["Known", "KnownFile"]


@dataclass(frozen=True)
class Known:
    """Frozen, so that every decision sees one moment.

    :param unreadable: why the rollout cannot be read, empty if it can
    """

    rollout: Rollout | None = None
    switch: Switch | None = None
    hosts: Mapping[str, HostRecord] = field(default_factory=dict)
    unreadable: str = ""

    def host_at(self, name: str) -> HostRecord | None:
        """The host that has this name or address."""
        if name in self.hosts:
            return self.hosts[name]
        found = [host for host in self.hosts.values() if name in host.addresses]
        # An address that two hosts claim says nothing.
        return found[0] if len(found) == 1 else None

    def to_json(self) -> bytes:
        """As the file has it."""
        return dumped({
            "rollout": "" if self.rollout is None else self.rollout.to_json().decode(),
            "switch": "" if self.switch is None else self.switch.to_json().decode(),
            "hosts": [host.to_json().decode() for host in self.hosts.values()],
            "unreadable": self.unreadable,
        })  # fmt: skip

    @classmethod
    def from_json(cls, where: str, data: bytes) -> Known:
        """What :meth:`to_json` wrote.

        :raises HostError: anything else; begins with `where`
        """
        fields = Fields.of_record(where, data)
        rollout, switch = fields.text("rollout"), fields.text("switch")
        hosts = [HostRecord.from_json(where, text.encode()) for text in fields.texts("hosts")]
        known = cls(
            Rollout.from_json(where, rollout.encode()) if rollout else None,
            Switch.from_json(where, switch.encode()) if switch else None,
            {host.name: host for host in hosts},
            fields.text("unreadable"),
        )
        fields.end()
        return known


class KnownFile:
    """The file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[Known, float]:
        """What it holds, and how many seconds ago that was heard: for ever ago where it holds nothing, or where the
        clock was set back since.

        :raises HostError: it is damaged
        """
        try:
            age = time.time() - self._path.stat().st_mtime
            known = Known.from_json(str(self._path), self._path.read_bytes())
        except FileNotFoundError:
            return Known(), math.inf
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror or error}") from error
        return known, age if age >= 0 else math.inf

    def write(self, known: Known) -> None:
        """Replace it.

        :raises HostError: it cannot be written
        """
        with OutputFile(str(self._path)) as file:
            file.write(known.to_json())
            file.commit()

    def heard(self, age: float) -> None:
        """The store was heard so many seconds ago."""
        moment = time.time() - age
        with contextlib.suppress(OSError):
            os.utime(self._path, (moment, moment))
