# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output, whose reader may go away at any time (`| head`), which is no error of ours."""

from __future__ import annotations

import os
import sys

from qmpfilter.errors import HostError

__all__ = ["write_out"]


def write_out(text: str) -> None:
    """Write text to standard output, all of it or as much as somebody reads.

    :raises HostError: it is closed, or what it goes to is full
    """
    if sys.stdout is None:
        raise HostError("standard output: closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up()
    except OSError as error:
        _give_up()
        raise HostError(f"standard output: {error.strerror or error}") from error


def _give_up() -> None:
    """What is still buffered would fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
