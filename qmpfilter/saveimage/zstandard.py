# SPDX-License-Identifier: GPL-2.0-or-later
"""zstd, where there is a library for it: distributions whose Python is older than 3.14 may have none, and images that
are compressed otherwise are read all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qmpfilter.errors import HostError

if TYPE_CHECKING:
    from backports.zstd import ZstdCompressor, ZstdDecompressor

try:
    from backports import zstd
except ImportError:
    _HAS_ZSTD = False
    ERRORS: tuple[type[Exception], ...] = ()
else:
    _HAS_ZSTD = True
    ERRORS = (zstd.ZstdError,)

__all__ = ["ERRORS", "compressor", "decompressor"]

# 128 MiB, the most that `zstd -dc`, which libvirt runs, accepts on its own.
_WINDOW_LOG: Final = 27


def decompressor() -> ZstdDecompressor:
    """For one member.

    :raises HostError: there is no library
    """
    _check()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


def compressor() -> ZstdCompressor:
    """For one member, with a checksum.

    :raises HostError: there is no library
    """
    _check()
    return zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})


def _check() -> None:
    if not _HAS_ZSTD:
        raise HostError("zstd takes the library backports.zstd, which is not here: decompress with 'zstd -d' first")
