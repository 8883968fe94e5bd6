# SPDX-License-Identifier: GPL-2.0-or-later
"""Network namespaces with a cable between them, and sockets in them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Final, TypeVar

SECONDS: Final = 60.0
_CLONE_NEWNET: Final = 0x40000000  # sched.h

_T = TypeVar("_T")


def within(network: str, *argv: str) -> list[str]:
    """The command line that runs this one there."""
    return ["ip", "netns", "exec", network, *argv]


def run(*argv: str) -> str:
    """What a program prints; raises CalledProcessError or TimeoutExpired."""
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=SECONDS).stdout


def made_in(network: str, make: Callable[[], _T]) -> _T:
    """What is made by a thread that is there: a socket stays in the network in which it was made."""

    def enter() -> _T:
        with open(f"/run/netns/{network}", encoding="ascii") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return make()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter).result(SECONDS)


@contextmanager
def two_networks() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them: 10.9.0.1 and 10.9.0.2, fd09::1 and fd09::2."""
    names = tuple(f"qmpfilter-{os.getpid()}-{end}" for end in ("a", "b"))
    with ExitStack() as stack:
        for name in names:
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
            run(*within(name, "ip", "link", "set", "lo", "up"))
        run(
            *within(
                names[0], "ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1]
            )
        )
        for number, name in enumerate(names, 1):
            run(*within(name, "ip", "address", "add", f"10.9.0.{number}/24", "dev", "cable"))
            run(*within(name, "ip", "address", "add", f"fd09::{number}/64", "dev", "cable", "nodad"))
            run(*within(name, "ip", "link", "set", "cable", "up"))
        yield names[0], names[1]
