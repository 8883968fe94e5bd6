# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that appears whole or not at all.

It is written beside its place under a hidden name, made durable, and renamed. It belongs to its owner alone (mode
0600): what is written holds guest memory, and a save image the domain's XML with its secrets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from qmpfilter.errors import HostError

__all__ = ["OutputFile"]

_BUFFER: Final = 1 << 20
# With what is added the name stays within the 255 bytes that file systems allow.
_SHOWN_NAME: Final = 64


class OutputFile:
    """A context manager: left without `commit`, what was at the path before is still there, and nothing else.

    :param path: where the file is to be; of a symbolic link, where that leads
    :raises HostError: there is something else than a regular file, or the directory cannot be written to
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self._path = Path(os.path.realpath(path))
        directory, name = self._path.parent, self._path.name
        try:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(self._path.stat().st_mode):
                    raise HostError(f"{path}: not a regular file, and only such a one can be replaced")
            descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{name[:_SHOWN_NAME]}.", suffix=".part")
        except OSError as error:
            raise self._host_error(error) from error
        self._temporary: Path | None = Path(temporary)
        self._file = os.fdopen(descriptor, "wb", buffering=_BUFFER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append.

        :raises HostError: the file system is full, or fails
        """
        try:
            self._file.write(data)
        except OSError as error:
            raise self._host_error(error) from error

    def descriptor(self) -> int:
        """The open file, for a program that writes on from here.

        :raises HostError: what was written so far cannot be
        """
        try:
            self._file.flush()
        except OSError as error:
            raise self._host_error(error) from error
        return self._file.fileno()

    def commit(self) -> None:
        """Make it durable and put it in its place, instead of what is there.

        :raises HostError: it cannot be; then what was there still is, unless only the directory failed to sync
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if self._temporary is not None:
                os.rename(self._temporary, self._path)
                self._temporary = None
            self._sync_directory()
        except OSError as error:
            raise self._host_error(error) from error

    def close(self) -> None:
        """Remove what was not committed."""
        # What is buffered has nowhere to go, and a full file system must not hide why this happens.
        with contextlib.suppress(OSError):
            self._file.close()
        if self._temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()
            self._temporary = None

    def _sync_directory(self) -> None:
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        except OSError as error:
            # Some network file systems have nothing to sync there.
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(directory)

    def _host_error(self, error: OSError) -> HostError:
        return HostError(f"{self.name}: {error.strerror or error}")
