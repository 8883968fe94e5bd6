# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals that would end the process at once end it in order, so that nothing is left behind."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

__all__ = ["interruptible", "on_signal"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt in this block, as SIGINT does."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with on_signal(interrupt):
        yield


@contextlib.contextmanager
def on_signal(call: Callable[[], None]) -> Iterator[None]:
    """In this block SIGINT, SIGTERM and SIGHUP call a function and nothing else."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        call()

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
