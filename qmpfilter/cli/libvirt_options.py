# SPDX-License-Identifier: GPL-2.0-or-later
"""The options with which a command speaks to libvirt, those of virsh among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from qmpfilter.libvirt.options import OPTIONS, Kind, Option

__all__ = ["connect_option", "virsh_options"]

_TYPES: Final[dict[Kind, Any]] = {
    Kind.TEXT: str,
    Kind.NUMBER: click.IntRange(min=0),
    Kind.LIST: str,
    Kind.FILE: click.Path(exists=True, dir_okay=False, path_type=Path),
}

connect_option: Final = click.option(
    "-c", "--connect", metavar="URI", help="The libvirt of this host; the same default as virsh's."
)


def virsh_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of ``virsh migrate``, each a parameter with its key, None or False if not used."""
    for option in reversed(OPTIONS):
        command = _option(option)(command)
    return command


def _option(option: Option) -> Callable[[Callable[..., int]], Callable[..., int]]:
    if option.kind is Kind.NOTHING:
        return click.option(f"--{option.name}", is_flag=True, help=option.help)
    callback = _read if option.kind is Kind.FILE else None
    return click.option(
        f"--{option.name}",
        type=_TYPES[option.kind],
        metavar=option.shown,
        help=option.help,
        callback=callback,
    )


def _read(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except ValueError as error:
        raise click.BadParameter(f"{path}: {error}") from error
