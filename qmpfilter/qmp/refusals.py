# SPDX-License-Identifier: GPL-2.0-or-later
"""What forbids that a QEMU's migration is handed over: settings of the operator, which are never changed for him.

Source: QEMU 10.2.2 qapi/migration.json (MigrationCapability, MigrationParameters), migration/migration.c
(migrate_prepare, migration_incoming_start), qapi/run-state.json (RunState).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from qmpfilter.errors import PolicyError
from qmpfilter.qmp.info import MigrationInfo

__all__ = ["check_destination", "check_source"]

_ELSEWHERE: Final = "turn it off, or migrate to an address at which 'qmpfilter relay' listens"
_CAPABILITIES: Final[Mapping[str, str]] = {
    "multifd": f"uses several connections, and only one can be handed over: {_ELSEWHERE}",
    "postcopy-preempt": f"uses two connections, and only one can be handed over: {_ELSEWHERE}",
    "x-colo": "goes on for ever in a protocol of its own, which cannot be filtered: turn it off",
    "mapped-ram": "writes to files only: turn it off",
    "background-snapshot": "lets the guest run on while its state is saved, and allows no return path: turn it off",
}
_NORMAL: Final = "normal"
_RUN_STATES: Final[Mapping[str, str]] = {
    "inmigrate": "it waits for a migration itself",
    "postmigrate": "its guest was migrated away already",
    "colo": "it takes part in COLO",
}


def check_source(
    path: str, status: str, info: MigrationInfo, capabilities: Mapping[str, bool], parameters: Mapping[str, Any]
) -> None:
    """Whether this QEMU's guest can be migrated with a connection of ours.

    :param path: of its QMP socket, for the message
    :param status: what query-status says
    :raises PolicyError: all the reasons why not
    """
    reasons = list(_of_settings(capabilities, parameters))
    if info.active:
        reasons.append(f"a migration goes on there already ({info.status}): wait for its end, or cancel it")
    if status in _RUN_STATES:
        reasons.append(f"{_RUN_STATES[status]} ({status})")
    reasons += [f"this guest cannot be migrated: {reason}" for reason in info.blocked]
    _refuse(path, reasons)


def check_destination(
    path: str, status: str, info: MigrationInfo, capabilities: Mapping[str, bool], parameters: Mapping[str, Any]
) -> None:
    """Whether this QEMU waits to be told where a migration comes from.

    :raises PolicyError: all the reasons why not
    """
    reasons = list(_of_settings(capabilities, parameters))
    if status != "inmigrate":
        reasons.append(f"it does not wait for a migration ({status}): start it with -incoming defer")
    elif info.begun:
        reasons.append(
            f"it waits at an address already, or is being migrated to ({info.status}): give that address instead of "
            "its QMP socket, or start it with -incoming defer"
        )
    _refuse(path, reasons)


def _of_settings(capabilities: Mapping[str, bool], parameters: Mapping[str, Any]) -> Iterator[str]:
    for name, why in _CAPABILITIES.items():
        if capabilities.get(name):
            yield f"the migration capability {name} {why}"
    if parameters.get("tls-creds"):
        yield (
            "the migration parameter tls-creds is set, and what is encrypted cannot be filtered: set it to the empty "
            "string, and protect the way between the hosts"
        )
    mode = parameters.get("mode", _NORMAL)
    if mode != _NORMAL:
        yield f"the migration parameter mode is {mode}, which passes file descriptors or files: set it to {_NORMAL}"


def _refuse(path: str, reasons: list[str]) -> None:
    if reasons:
        raise PolicyError(f"{path}: {'; '.join(reasons)}")
