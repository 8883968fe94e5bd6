# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output, whose reader may go away at any time (`| head`), which is no error of ours."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import zip_longest
from typing import Any, Final

from qmpfilter.errors import HostError

__all__ = ["print_json", "table", "write_out"]

_WIDTH: Final = 200
_UNBOUNDED: Final = 1 << 16


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


def print_json(answer: Mapping[str, Any]) -> None:
    """Write an object to standard output.

    :raises HostError: it is closed, or what it goes to is full
    """
    write_out(json.dumps(answer, indent=1) + "\n")


def table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[str] = (),
    *,
    notes: Sequence[str] = (),
    wraps: str = "",
) -> str:
    """Rows under titles. Nothing is shortened: what is wider than the terminal stays in its line.

    :param numbers: titles of columns that are to be read from the right
    :param notes: for each row what stands in a line of its own below it, empty for nothing
    :param wraps: title of a column that is wrapped to fit the terminal; then there are no notes
    """
    # Imported here: rich is not needed for JSON.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        grid.add_column(title, justify="right" if title in numbers else "left", no_wrap=title != wraps)
    for row in rows:
        grid.add_row(*(Text(cell if wraps else " ".join(cell.split())) for cell in row))
    out = StringIO()
    width = shutil.get_terminal_size((_WIDTH, 0)).columns if wraps else _UNBOUNDED
    Console(file=out, width=width, no_color=True, highlight=False).print(grid)
    head, *lines = (line.rstrip() for line in out.getvalue().splitlines())
    told = [head]
    for line, note in zip_longest(lines, notes, fillvalue=""):
        told += [line, f"    {' '.join(note.split())}"] if note else [line]
    return "".join(f"{line}\n" for line in told)
