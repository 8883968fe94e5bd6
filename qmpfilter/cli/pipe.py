# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter pipe``: what QEMU starts for ``migrate exec:``, with the stream on standard input.

QEMU gives its child two pipes (migration/exec.c, io/channel-command.c: O_RDWR): standard input brings the stream,
standard output takes the return path. Seen with QEMU 10.0:

- With a return path all is as over a socket: SHUT on standard output, or its end, tells the source to go on.
- The child's exit status is not looked at: without a return path a migration has completed for its source when the
  last byte is in a pipe, even if the child then ends with 1.
- When QEMU closes the pipes it waits for the child to end, and answers nobody meanwhile.
- migrate_cancel cannot wake a thread that waits at a pipe: all of QEMU waits for the child to say or close something.
  Nothing tells the child, except that no more bytes come; hence a shorter deadline for silence.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable
from typing import Final

import click

from qmpfilter.cli.interrupt import on_signal
from qmpfilter.cli.policy_options import STATUS, Choices, policy_options
from qmpfilter.errors import HostError
from qmpfilter.filter.gate import Gate
from qmpfilter.filter.policy import Mode
from qmpfilter.relay.address import parse_address
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.relay import Relay
from qmpfilter.relay.report import as_json, as_text

__all__ = ["pipe"]

_STDIN: Final = 0
_STDOUT: Final = 1
_WIDE: Final = 1 << 20
_NARROW: Final = 4096
_LAST_SECONDS: Final = 5.0
_IDLE_SECONDS: Final = 30.0


@click.command()
@click.argument("target", metavar="TARGET")
@policy_options(Waits(idle=_IDLE_SECONDS))
def pipe(target: str, choices: Choices) -> int:
    """Filter the migration on standard input and pass it on to TARGET: unix:PATH or tcp:HOST:PORT.

    For a source without sockets of ours: migrate "exec:exec qmpfilter pipe TARGET". Standard output is the return
    path, so what happened is told on standard error, which is QEMU's.

    The capability return-path has to be on. Without it QEMU looks neither at what is written back nor at the exit
    status: once its last byte is in the pipe, it takes the migration for completed, whatever becomes of it. With
    --allow-no-return-path little is read ahead then, so that a refusal mostly comes before that last byte and QEMU
    sees its pipe break; nothing makes it certain.

    After migrate_cancel QEMU answers nobody until this command has ended: it does so when nothing has come for 30 s
    (--deadline idle=SECONDS), or on SIGTERM. 'qmpfilter migrate' and 'qmpfilter relay' have none of these limits, and
    relay also serves migrations of several connections.

    Exit status: as of 'qmpfilter relay'; QEMU does not look at it.
    """
    destination = parse_address(target)
    if not all(stat.S_ISFIFO(os.fstat(end).st_mode) for end in (_STDIN, _STDOUT)):
        raise HostError("standard input and output are not the pipes that QEMU's migrate exec: gives")
    gate = Gate(choices.policy, choices.kill_switch.exists)
    relay = Relay(destination.connect, gate, choices.waits)
    ours, theirs = socket.socketpair()

    def heard() -> bool:
        # Whatever is read ahead: the source waits for an answer, or there is none to give.
        return gate.return_path or gate.switched_off or choices.policy.mode is Mode.OFF

    ends = _Ends(theirs, heard)
    with on_signal(relay.interrupt):
        ends.start()
        outcome = relay.run([ours])
    ends.join()
    choices.write_report(as_json(relay, gate))
    print(as_text(relay, gate), end="", file=sys.stderr)
    return STATUS[outcome]


class _Ends:
    """Standard input and output joined with a socket, since a relay has sockets only.

    :param heard: whether a source would hear of a refusal whenever it comes; until then no more than a few pages lie
        between it and the relay
    """

    def __init__(self, end: socket.socket, heard: Callable[[], bool]) -> None:
        self._end = end
        self._heard = heard
        self._wide = False
        self._set_room(_NARROW)
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._pass_forward, self._pass_back)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Deliver the last that the relay said."""
        self._threads[1].join(_LAST_SECONDS)

    def _pass_forward(self) -> None:
        with contextlib.suppress(OSError):
            while os.splice(_STDIN, self._end.fileno(), _WIDE if self._widened() else _NARROW):
                pass
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)

    def _pass_back(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._end.recv(_NARROW):
                os.write(_STDOUT, data)
        # What ends here, QEMU has to see at once.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)

    def _widened(self) -> bool:
        if not self._wide and self._heard():
            self._wide = True
            self._set_room(_WIDE)
        return self._wide

    def _set_room(self, count: int) -> None:
        # What an unprivileged process may not have, or what is full already, stays as it is.
        with contextlib.suppress(OSError):
            fcntl.fcntl(_STDIN, fcntl.F_SETPIPE_SZ, count)
        self._end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, count)
