# SPDX-License-Identifier: GPL-2.0-or-later
"""The audit log: files of chained records in a directory, appended to by many processes, never changed.

``audit.jsonl`` is the newest; when it is full it becomes ``audit-NUMBER.jsonl``, with the number of its last record,
and the chain goes on in a new one. Removing the oldest files leaves the rest verifiable.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from qmpfilter.audit.chain import Fault, Link, Verifier, sealed
from qmpfilter.errors import DeadlineError, HostError
from qmpfilter.flock import locked_within

__all__ = ["MOST", "AuditLog", "Entry"]

MOST: Final = 64 << 20
"""Bytes of a file before the next one is begun."""

_NEWEST: Final = "audit.jsonl"
_OLDER: Final = re.compile(r"audit-(\d+)\.jsonl")
# A record of a guest with a thousand vCPUs is far less.
_LONGEST: Final = 1 << 20


class Entry(NamedTuple):
    """A line of the log.

    :param file: its file
    :param line: counted from 1
    """

    file: Path
    line: int
    record: dict[str, Any] | None
    fault: Fault | None


class AuditLog:
    """The log in a directory, which is made for its owner alone by the first record.

    :param most: bytes of a file before the next one is begun
    """

    def __init__(self, directory: Path, most: int = MOST) -> None:
        self.directory = directory
        self._most = most

    def append(self, body: Mapping[str, Any], seconds: float) -> int:
        """Write a record; it is on the disk when this returns.

        :returns: its number
        :raises DeadlineError: somebody else was writing for so long
        :raises HostError: it cannot be written
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked(seconds):
                return self._append(body)
        except OSError as error:
            raise HostError(f"{error.filename or self.directory}: {error.strerror or error}") from error

    def entries(self) -> Iterator[Entry]:
        """Every line from the oldest to the newest, verified.

        :raises HostError: a file cannot be read
        """
        verifier: Verifier | None = None
        for file in self._files():
            try:
                with file.open("rb") as lines:
                    for number, line in enumerate(lines, 1):
                        # Where the first files were removed the chain is taken up in its middle.
                        verifier = verifier or Verifier(Link() if b'"number":1,' in line else None)
                        yield Entry(file, number, *verifier.take(line))
            except OSError as error:
                raise HostError(f"{file}: {error.strerror or error}") from error

    def _files(self) -> list[Path]:
        """The oldest first."""
        with contextlib.suppress(FileNotFoundError):
            older = [file for file in self.directory.iterdir() if _OLDER.fullmatch(file.name)]
            newest = self.directory / _NEWEST
            ordered = sorted(older, key=lambda file: int(file.stem.rpartition("-")[2]))
            return [*ordered, *([newest] if newest.exists() else [])]
        return []

    def _append(self, body: Mapping[str, Any]) -> int:
        newest = self.directory / _NEWEST
        descriptor = os.open(newest, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            last, whole = _last(descriptor, size)
            if whole < size:
                # The beginning of a record that no host ever counted on: it went down before that was on the disk.
                os.ftruncate(descriptor, whole)
                size = whole
            if last is None:
                last = self._last_of_older()
            line, link = sealed(body, last)
            if size and size + len(line) > self._most:
                os.rename(newest, self.directory / f"audit-{last.number}.jsonl")
                os.close(descriptor)
                descriptor = os.open(newest, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
                size = 0
            _write(descriptor, line)
            os.fsync(descriptor)
            if not size:
                self._sync_directory()
        finally:
            os.close(descriptor)
        return link.number

    def _last_of_older(self) -> Link:
        for file in reversed(self._files()[:-1]):
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                last, _ = _last(descriptor, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
            if last is not None:
                return last
        return Link()

    def _sync_directory(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self, seconds: float) -> Iterator[None]:
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not locked_within(lock, seconds):
                raise DeadlineError(f"{self.directory}: somebody writes for longer than {seconds:g} s")
            yield
        finally:
            os.close(lock)


def _last(descriptor: int, size: int) -> tuple[Link | None, int]:
    """The link of the last record that is one, and where the last line ends."""
    end = os.pread(descriptor, _LONGEST, max(0, size - _LONGEST))
    whole = size - len(end) + end.rfind(b"\n") + 1
    for line in reversed(end.splitlines(keepends=True)):
        verifier = Verifier(None)
        if verifier.take(line)[1] is None:
            return verifier.last, whole
    return None, whole


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
