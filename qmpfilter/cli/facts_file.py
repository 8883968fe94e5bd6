# SPDX-License-Identifier: GPL-2.0-or-later
"""The file that ``--host`` names."""

from __future__ import annotations

from pathlib import Path

import click

from qmpfilter.errors import HostError
from qmpfilter.verdict.facts import HostFacts

__all__ = ["read_facts"]


def read_facts(path: Path) -> HostFacts:
    """The host facts in a file; ``-`` is standard input.

    :raises HostError: it cannot be read, or holds none; begins with its name
    """
    try:
        with click.open_file(str(path), "rb") as file:
            return HostFacts.from_json(file.read())
    except OSError as error:
        raise HostError(f"{path}: {error.strerror or error}") from error
    except HostError as error:
        raise HostError(f"{path}: {error}") from error
