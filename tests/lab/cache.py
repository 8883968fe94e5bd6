# SPDX-License-Identifier: GPL-2.0-or-later
"""Things that take minutes to make and are kept outside of the tree."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_SECONDS = 1800.0


def cache_directory() -> Path:
    """$QMPFILTER_LAB_CACHE, or qmpfilter-lab in the user's cache directory."""
    if own := os.environ.get("QMPFILTER_LAB_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmpfilter-lab"


def cached(key: str, make: Callable[[Path], None]) -> Path:
    """The directory of that key, made by ``make`` in a directory it is given if it is not there yet.

    The directory gets its name when it is whole, so what an interrupted run left is never taken for a result,
    and a lock keeps two runs from making the same.  Raises TimeoutError if another run holds the lock too long.
    """
    root = cache_directory()
    root.mkdir(parents=True, exist_ok=True)
    whole = root / key
    with _locked(root / f"{key}.lock"):
        if not whole.is_dir():
            unfinished = root / f"{key}.unfinished"
            if unfinished.exists():
                shutil.rmtree(unfinished)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(whole)
    return whole


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    end = time.monotonic() + LOCK_SECONDS
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as held:
                if time.monotonic() > end:
                    raise TimeoutError(f"{path} is held by another run for {LOCK_SECONDS:g} s") from held
                time.sleep(0.5)
            else:
                break
        yield
