# SPDX-License-Identifier: GPL-2.0-or-later
"""Compression in bounded memory, of the formats and with the levels that the programs have that libvirt runs.

Source: libvirt 11.3, src/qemu/qemu_saveimage.c, ``qemuSaveImageGetCompressionCommand``: the program's name with
``-c`` alone, hence each program's own default level.
"""

from __future__ import annotations

import bz2
import lzma
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Mapping
from typing import IO, Final, Protocol

from qmpfilter.errors import BugError, HostError
from qmpfilter.saveimage import zstandard
from qmpfilter.saveimage.header import SaveFormat
from qmpfilter.saveimage.outfile import OutputFile

__all__ = ["COMPRESSORS", "Encoder", "open_encoder"]

_LZOP: Final = ("lzop", "-c")
_END_SECONDS: Final = 60.0
_SHOWN_MESSAGE: Final = 200


class Encoder(Protocol):
    """Takes a stream and writes it to an output file; closed without `finish`, it leaves the file incomplete."""

    def write(self, data: bytes | memoryview) -> None:
        """:raises HostError: the file cannot be written, or the program lzop failed"""

    def finish(self) -> None:
        """Write what is left and end the format.

        :raises HostError: as `write`
        """

    def close(self) -> None:
        """Let go of what was opened."""


class Compressor(Protocol):
    """The interface that the standard library's compressors share."""

    def compress(self, data: bytes | memoryview, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _gzip() -> Compressor:
    return zlib.compressobj(wbits=zlib.MAX_WBITS | 16)


COMPRESSORS: Final[Mapping[SaveFormat, Callable[[], Compressor]]] = {
    SaveFormat.GZIP: _gzip,
    SaveFormat.BZIP2: bz2.BZ2Compressor,
    SaveFormat.XZ: lzma.LZMACompressor,
    SaveFormat.ZSTD: zstandard.compressor,
}


def open_encoder(output: OutputFile, format: SaveFormat) -> Encoder:
    """An encoder that writes on from where the file is.

    :raises HostError: the program lzop is needed and cannot be run
    """
    if format is SaveFormat.RAW:
        return _RawEncoder(output)
    if format is SaveFormat.LZOP:
        return _LzopEncoder(output)
    return _CompressingEncoder(output, COMPRESSORS[format]())


class _RawEncoder:
    def __init__(self, output: OutputFile) -> None:
        self.write = output.write

    def finish(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing was opened."""


class _CompressingEncoder:
    def __init__(self, output: OutputFile, compressor: Compressor) -> None:
        self._output = output
        self._compressor = compressor

    def write(self, data: bytes | memoryview) -> None:
        self._output.write(self._compressor.compress(data))

    def finish(self) -> None:
        self._output.write(self._compressor.flush())

    def close(self) -> None:
        """Nothing is held beyond memory."""


class _LzopEncoder:
    """Feeds the program, which writes to the file itself."""

    def __init__(self, output: OutputFile) -> None:
        # A file takes any amount of complaints; a pipe that nobody reads would block the program.
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        try:
            self._process = subprocess.Popen(
                _LZOP, stdin=subprocess.PIPE, stdout=output.descriptor(), stderr=self._messages
            )
        except OSError as error:
            self._messages.close()
            hint = "install lzop" if isinstance(error, FileNotFoundError) else error.strerror
            raise HostError(f"the program lzop, which compresses this output, cannot be run: {hint}") from error
        if self._process.stdin is None:
            raise BugError("lzop without a standard input")
        self._stdin = self._process.stdin

    def write(self, data: bytes | memoryview) -> None:
        try:
            self._stdin.write(data)
        except BrokenPipeError as error:
            raise self._failed() from error

    def finish(self) -> None:
        try:
            self._stdin.close()
        except BrokenPipeError as error:
            raise self._failed() from error
        if self._wait():
            raise self._failed()

    def close(self) -> None:
        """End the program if it still runs, and reap it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        try:
            self._stdin.close()
        except BrokenPipeError:
            # What was not written is of no use any more.
            return
        finally:
            self._messages.close()

    def _wait(self) -> int:
        try:
            return self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise HostError(f"lzop did not end within {_END_SECONDS:g} s after its input had ended") from None

    def _failed(self) -> HostError:
        status = self._wait()
        self._messages.seek(0)
        message = " ".join(self._messages.read(_SHOWN_MESSAGE).decode("ascii", "replace").split())
        return HostError(f"lzop ended with status {status}: {message or 'no message'}")
