# SPDX-License-Identifier: GPL-2.0-or-later
"""Decompression of lzop data by the program ``lzop``, which is what libvirt runs too.

Source: libvirt 11.3, src/qemu/qemu_saveimage.c, ``qemuSaveImageGetCompressionCommand``.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from typing import IO

from qmpfilter.errors import HostError, ImageError
from qmpfilter.saveimage.infile import InputFile

__all__ = ["LzopReader"]

_COMMAND = ("lzop", "-dc", "--ignore-warn")
_CHUNK = 128 << 10
_SHOWN_MESSAGE = 200


class LzopReader:
    """Feeds the rest of an input to the program and hands on what it writes.

    :param infile: stands at the first compressed byte
    :raises HostError: the program is missing or cannot be run
    """

    def __init__(self, infile: InputFile) -> None:
        self._infile = infile
        self._chunk = memoryview(bytearray(_CHUNK))
        self._pending = self._chunk[:0]
        self._offset = 0
        self._ended = False
        # A file takes any amount of complaints; a pipe that nobody reads would block the program.
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        try:
            self._process = subprocess.Popen(
                _COMMAND, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages
            )
        except OSError as error:
            self._messages.close()
            hint = "install lzop" if isinstance(error, FileNotFoundError) else error.strerror
            raise HostError(f"the program lzop, which decompresses this input, cannot be run: {hint}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)
        self._poll.register(self._stdin, select.POLLOUT)
        os.set_blocking(self._stdin.fileno(), False)

    def readinto(self, view: memoryview) -> int:
        """Decompress into `view`, from its start.

        :returns: bytes written; 0 at the end of the stream
        :raises ImageError: the program failed on the data; the offset is one of the decompressed stream
        :raises HostError: the input cannot be read
        """
        while not self._ended:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            if self._stdout.fileno() not in ready:
                self._feed()
                continue
            got = os.readv(self._stdout.fileno(), [view])
            self._offset += got
            if got:
                return got
            self._finish()
        return 0

    def close(self) -> None:
        """End the program if it still runs, and reap it."""
        self._ended = True
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for file in (self._stdin, self._stdout, self._messages):
            file.close()

    def _feed(self) -> None:
        if not self._pending:
            self._pending = self._chunk[: self._infile.readinto(self._chunk)]
        if not self._pending:
            self._end_input()
            return
        try:
            self._pending = self._pending[os.write(self._stdin.fileno(), self._pending) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            # The program has seen enough: its exit status says whether that is an error.
            self._end_input()

    def _end_input(self) -> None:
        if not self._stdin.closed:
            self._poll.unregister(self._stdin)
            self._stdin.close()

    def _finish(self) -> None:
        self._ended = True
        self._end_input()
        status = self._process.wait()
        if status:
            raise ImageError(self._offset, "intact lzop data", f"status {status} of lzop: {self._message()}")

    def _message(self) -> str:
        self._messages.seek(0)
        text = self._messages.read(_SHOWN_MESSAGE).decode("ascii", "replace")
        return " ".join(text.split()) or "no message"
