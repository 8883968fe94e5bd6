# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of commands that may meet another filter, at a ``pair:`` address."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from qmpfilter.relay.pair import Encryption, Pairing

__all__ = ["pair_options"]

_OPTIONS: Final = (
    click.option(
        "--pair-encryption",
        "encryption",
        type=click.Choice([one.value for one in Encryption]),
        default=Encryption.AUTO.value,
        show_default=True,
        help="TLS with the filter at a pair: address: 'auto' with those on other hosts, 'always' with all of tcp:.",
    ),
    click.option(
        "--pki",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        default=Pairing().pki,
        show_default=True,
        help="Certificates for TLS, in libvirt's layout.",
    ),
)


def pair_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options, and what they say as its parameter `pairing`."""

    @functools.wraps(command)
    def chosen(*, encryption: str, pki: Path, **others: Any) -> int:
        return command(pairing=Pairing(Encryption(encryption), pki.absolute()), **others)

    result: Callable[..., int] = chosen
    for option in reversed(_OPTIONS):
        result = option(result)
    return result
