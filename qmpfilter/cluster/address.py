# SPDX-License-Identifier: GPL-2.0-or-later
"""Which store an address names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from qmpfilter.cluster.directory import DirectoryStore
from qmpfilter.cluster.store import Store, checked_key
from qmpfilter.errors import HostError

__all__ = ["Access", "Endpoint", "open_store"]

_PORT: Final = 2379
_NAMESPACE: Final = "qmpfilter"
_ETCD: Final = re.compile(r"etcd:(https?)://([^/@]+)(?:/(.*))?")


@dataclass(frozen=True, kw_only=True)
class Access:
    """How long a store may take to answer; of etcd, what it asks for, and how it is known to be the right one.

    :param seconds: how long a call may take, whichever endpoints it tries
    :param ca: certificates of who may vouch for the server; without it, whom Python's certifi lists
    :param certificate: of this host, if the server asks for one, with its ``key`` unless that is in the same file
    :param user: with ``password_file``, whose first line is the password
    """

    seconds: float = 3.0
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str | None = None
    password_file: Path | None = None


_DEFAULT: Final = Access()


@dataclass(frozen=True)
class Endpoint:
    """Where a member of an etcd cluster listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def open_store(address: str, access: Access = _DEFAULT) -> Store:
    """The store at an address; nothing is reached for yet.

    :param address: ``dir:/path``, a directory with a file ``store``, empty at first; or
        ``etcd:https://host:port,host:port/namespace``, by default of port 2379 and namespace ``qmpfilter``
    :raises HostError: there is no such address, a file that the access names cannot be read, or a package is missing
    """
    kind, _, rest = address.partition(":")
    if kind == "dir" and rest.startswith("/"):
        return DirectoryStore(Path(rest), access.seconds)
    parsed = _ETCD.fullmatch(address)
    if parsed is None:
        raise HostError(
            f"{address!r} is no address of a store: dir:/path or etcd:https://host:2379,host:2379, "
            "user and password apart from it."
        )
    try:
        from qmpfilter.cluster.etcd import EtcdStore
    except ImportError as error:
        raise HostError(f"A store in etcd takes a package that is missing: pip install etcd3gw ({error}).") from error
    protocol, hosts, namespace = parsed.groups()
    if access.user is not None and protocol != "https":
        raise HostError(f"{address}: a password is sent over https only.")
    endpoints = [_endpoint(address, host) for host in hosts.split(",")]
    return EtcdStore(protocol, endpoints, checked_key(namespace or _NAMESPACE), access)


def _endpoint(address: str, text: str) -> Endpoint:
    try:
        parts = urlsplit(f"//{text}")
        if parts.netloc == text and parts.hostname:
            return Endpoint(parts.hostname, parts.port or _PORT)
    except ValueError:
        pass
    raise HostError(f"{address!r}: {text!r} is no host with a port.")
