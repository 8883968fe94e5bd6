# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a QEMU listens for something other than its guest, as its command line says: monitors, gdb, displays,
networks, character devices. A domain's XML does not name those of ``<qemu:commandline>``. Pure.

Sources: QEMU 10.0 qemu-options.hx; chardev/char.c (qemu_chr_parse_compat), ui/vnc.c (5900, 5700), gdbstub/system.c.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Listeners", "own_listeners"]

# Options of one character device in the short form, `unix:PATH,server=on`.
_SHORT: Final = ("-qmp", "-qmp-pretty", "-monitor", "-gdb", "-serial", "-parallel", "-debugcon")
_STREAMS: Final = ("tcp", "telnet", "websocket", "tn3270")
_KEYED: Final = ("-chardev", "-netdev", "-nic", "-net", "-spice")
_PORTS: Final = ("port", "tls-port", "listen")
_PATHS: Final = ("path", "addr")
_HOST_FORWARD: Final = re.compile(r"\w*:[^:]*:(\d+)-.*")
_COMMA: Final = re.compile(r"(?<!,),(?!,)")
_VNC: Final = 5900
_VNC_WEBSOCKET: Final = 5700
_GDB: Final = 1234  # of the option -s


@dataclass(frozen=True, slots=True)
class Listeners:
    """TCP ports, and paths of unix sockets; more than are listened on, because clients are named alike."""

    ports: set[int] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)

    def add_port(self, text: str) -> None:
        """One that stands alone or after a host; names of services are passed over."""
        number = text.rpartition(":")[2]
        if number.isdecimal():
            self.ports.add(int(number))


def own_listeners(arguments: Sequence[str]) -> Listeners:
    """What a command line names.

    :param arguments: with the program first
    """
    found = Listeners()
    # The last argument may be an option without a value.
    for option, value in zip(arguments, (*arguments[1:], ""), strict=True):
        # QEMU takes two dashes, too.
        name = f"-{option.lstrip('-')}" if option.startswith("-") else ""
        if name in _SHORT:
            _add_short(found, value)
        elif name == "-vnc":
            _add_vnc(found, value)
        elif name in _KEYED:
            _add_keyed(found, value)
        elif name == "-s":
            found.ports.add(_GDB)
    return found


def _add_short(found: Listeners, value: str) -> None:
    kind, _, place = _parts(value.removeprefix("mon:"))[0].partition(":")
    if kind == "unix":
        found.paths.add(place)
    elif kind in _STREAMS:
        found.add_port(place)


def _add_vnc(found: Listeners, value: str) -> None:
    place, *more = _parts(value)
    if place.startswith("unix:"):
        found.paths.add(place.removeprefix("unix:"))
    display = place.rpartition(":")[2]
    number = int(display) if display.isdecimal() else 0
    found.ports.add(_VNC + number)
    for key, inner in map(_pair, more):
        if key == "websocket":
            found.add_port(inner if inner.isdecimal() else str(_VNC_WEBSOCKET + number))


def _add_keyed(found: Listeners, value: str) -> None:
    for key, inner in _pairs(value):
        if key in _PORTS:
            found.add_port(inner)
        elif key in _PATHS:
            found.paths.add(inner)
        elif key == "hostfwd" and (match := _HOST_FORWARD.fullmatch(inner)):
            found.add_port(match.group(1))


def _pairs(value: str) -> Iterator[tuple[str, str]]:
    """Keys without what stands before their last dot, and values."""
    if value.startswith("{"):
        try:
            yield from _leaves("", json.loads(value))
        except (ValueError, RecursionError):
            return
    else:
        for part in _parts(value):
            key, inner = _pair(part)
            yield key.rpartition(".")[2], inner


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(key, inner)
    else:
        yield key, str(value)


def _parts(value: str) -> list[str]:
    """What commas divide; a comma of a value is doubled."""
    return [part.replace(",,", ",") for part in _COMMA.split(value)]


def _pair(part: str) -> tuple[str, str]:
    key, _, value = part.partition("=")
    return key, value
