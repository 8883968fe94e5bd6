# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks a daemon one thing."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final

from qmpfilter.errors import BugError, DaemonAwayError, DeadlineError, HostError, PolicyError
from qmpfilter.relay.deadline import Deadline

__all__ = ["ask"]

_CHUNK: Final = 1 << 16
_MOST: Final = 256 << 20


def ask(path: Path, op: str, seconds: float = 130.0, **what: Any) -> dict[str, Any]:
    """The daemon's answer to a request (:mod:`qmpfilter.daemon.control`).

    :param path: its control socket
    :param op: what is asked
    :param seconds: for which it is waited
    :param what: the request's other keys
    :raises DaemonAwayError: nobody answers in time
    :raises HostError: the daemon says that the host or the request is at fault
    :raises PolicyError: what is asked for contradicts the policy
    :raises BugError: the daemon's answer makes no sense, or it says so itself
    """
    deadline = Deadline(seconds, "the daemon's answer")
    line = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(deadline.remaining())
            connection.connect(str(path))
            connection.sendall(json.dumps({"op": op, **what}).encode() + b"\n")
            while not line.endswith(b"\n"):
                connection.settimeout(deadline.remaining())
                part = connection.recv(_CHUNK)
                if not part or len(line) > _MOST:
                    raise DaemonAwayError(f"the daemon at {path} did not answer")
                line += part
    except (FileNotFoundError, ConnectionRefusedError):
        raise DaemonAwayError(f"no daemon answers at {path}: start it with 'qmpfilter run'") from None
    except (TimeoutError, DeadlineError):
        raise DaemonAwayError(f"the daemon at {path} did not answer within {seconds:g} s") from None
    except OSError as error:
        raise DaemonAwayError(f"the daemon at {path}: {error.strerror or error}") from error
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise BugError(f"the daemon's answer: {error}") from error
    if not isinstance(answer, dict):
        raise BugError("the daemon's answer is no JSON object")
    if "error" in answer:
        kinds = {"policy": PolicyError, "bug": BugError}
        raise kinds.get(str(answer.get("blame")), HostError)(answer["error"])
    return answer
