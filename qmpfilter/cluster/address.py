# SPDX-License-Identifier: GPL-2.0-or-later
"""Which store an address names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qmpfilter.cluster.store import Store
from qmpfilter.errors import HostError

__all__ = ["Access", "open_store"]


@dataclass(frozen=True, kw_only=True)
class Access:
    """What an etcd server asks for, and how it is known to be the right one.

    :param ca: certificates of who may vouch for the server; without it, whom the system trusts
    :param certificate: of this host, if the server asks for one, with its ``key``
    :param user: with ``password_file``, whose first line is the password
    :param seconds: how long one request may take
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    seconds: float = 3.0


def open_store(address: str, access: Access | None = None) -> Store:
    """The store at ``dir:/path`` or ``etcd:https://host:port,host:port/namespace``; nothing is reached for yet.

    :raises HostError: the address is none, a file that it takes cannot be read, or a package is missing
    """
    raise HostError(f"{address!r} is no address of a store.")
