# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket ``RUNTIME/control.sock``: a stream socket of mode 0600 for root and the daemon's own user.

A request is one line of UTF-8, a JSON object with ``op``; so is its answer. One connection may carry several, each
answered before the next is read. An answer with ``error``, one sentence, says that nothing was done; ``blame`` then
is ``policy``, ``host`` or ``bug``. A line longer than :data:`MOST` bytes, or one that does not come in time, is
answered with an error, and the connection ends.

=========== =========================================== ==========================================================
op          takes                                       gives
=========== =========================================== ==========================================================
status                                                  ``version``, ``pid``, ``began``, ``config`` (files),
                                                        ``runtime``, ``state``, ``mode``, ``verdict``,
                                                        ``max_sessions``, ``running``, ``draining``, ``off``,
                                                        ``cluster``: null, or what this host is in it
sessions    ``limit``: of ended ones, 100 by default    ``running`` and ``ended``: lists, the newest first
show        ``session``                                 ``running``: it as in ``sessions``, or ``report``: all of it
stop        ``session``                                 nothing. Before the commit point the guest stays at the
                                                        source; after it nothing changes
relay       ``listen``, ``connect``: addresses with     ``session``, and ``listen``: the address that is listened
            absolute paths, ``qmp:PATH`` as             on, with the port if 0 was asked for
            ``listen`` for a source that is to be
            told to migrate, and then also as
            ``connect`` for a waiting destination;
            ``qmp``: the QMP socket of a source that
            comes by itself; ``read_vmcb12``, true by
            default; of the configuration's
            values another ``mode``, ``verdict``,
            ``allow_no_return_path``, and more codes
            to ``accept``; ``host``: the destination's
            facts, as an object; ``deadlines``; ``domain``:
            the guest's uuid, which the other filter of a
            pair is told; ``domain_mode``: the mode of its
            policy; ``destination``: the host's name, where
            ``connect`` does not tell it. In a cluster a
            mode is the most that is wanted: the answer has
            the effective ``mode`` and ``why``
explain     ``destination``, ``domain``, ``mode``,          ``mode``, ``why``, and ``steps``: who allows how much
            ``domain_mode``, as of relay                    at most (``who``, ``most``, ``why``)
reload                                                  ``config``: the files that were read. A configuration
                                                        that is wrong changes nothing
off, on                                                 ``off``: whether everything passes as it is
hook        ``operation``, ``sub``, ``extra`` as        ``xml`` (the domain's XML, changed), ``veto`` (one
            libvirt runs its hook with, ``domain``,     sentence), or neither
            ``xml``
=========== =========================================== ==========================================================

A running session has ``session``, ``listen``, ``connect``, ``mode``, ``verdict``, ``began``, ``asked_by`` (the user
and process that asked for it), ``pid``, ``stage`` (starting, waiting, streaming, committed), ``attached`` (its worker
was started by this daemon), ``channels``, ``bytes``, ``moments``. An ended one has ``session``, ``listen``,
``connect``, ``mode``, ``outcome``, ``reason``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from qmpfilter.errors import BugError, HostError, PolicyError, QmpfilterError
from qmpfilter.relay.address import UnixAddress

__all__ = ["MOST", "Control", "Operation", "Request"]

MOST: Final = 1 << 20
"""Bytes of a request."""

_log: Final = logging.getLogger(__name__)

_REQUEST_SECONDS: Final = 30.0
_REST_SECONDS: Final = 2.0
_OPERATION_SECONDS: Final = 120.0
# From Python 3.13 on asyncio would remove the socket's path at its end, also one that a service manager listens on.
_LEAVES_PATH: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
_UCRED: Final = struct.Struct("3i")  # unix(7): pid, uid, gid


class Request:
    """What was asked, taken key by key.

    :param is_waited_for: whether whoever asks still waits for the answer
    :ivar peer: the user and process that asks, in words

    :raises HostError: (all methods) a value is missing or of the wrong kind
    """

    def __init__(
        self, values: Mapping[str, Any], peer: str = "", is_waited_for: Callable[[], bool] = lambda: True
    ) -> None:
        self._values = dict(values)
        self._is_waited_for = is_waited_for
        self.peer = peer

    def check_waited_for(self) -> None:
        """:raises HostError: whoever asked has gone, and took the lack of an answer for one"""
        if not self._is_waited_for():
            raise HostError("whoever asked has given up waiting, so nothing is done")

    def text(self, key: str, default: str | None = None) -> str:
        """A text, that has to be there unless there is a default."""
        return self._take(key, str, "a text", default)  # type: ignore[no-any-return]  # checked by its kind

    def choice(self, key: str, among: list[str], default: str) -> str:
        """One of some texts; where it is missing the default, which need not be one of them."""
        value = self._take(key, str, "a text", default)
        if value not in among and value != default:
            raise HostError(f"{key}: one of {', '.join(among)} was expected, found {value!r}")
        return str(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return bool(self._take(key, bool, "true or false", default))

    def count(self, key: str, default: int) -> int:
        """A number that is not negative."""
        value = self._take(key, int, "a number", default)
        if isinstance(value, bool) or value < 0:
            raise HostError(f"{key}: a number that is not negative was expected, found {value!r}")
        return int(value)

    def texts(self, key: str) -> list[str]:
        """A list of texts; none where it is missing."""
        values = self._take(key, list, "a list", [])
        if not all(isinstance(value, str) for value in values):
            raise HostError(f"{key}: a list of texts was expected, found {values!r}")
        return list(values)

    def object(self, key: str) -> dict[str, Any] | None:
        """A JSON object, None where it is missing."""
        return self._take(key, dict, "an object", {}) or None

    def end(self) -> None:
        """There is nothing more than what was taken."""
        if self._values:
            raise HostError(f"not understood: {', '.join(sorted(self._values))}")

    def _take(self, key: str, kind: type, what: str, default: Any) -> Any:
        value = self._values.pop(key, default)
        if not isinstance(value, kind):
            raise HostError(
                f"{key}: {what} was expected, found {value!r}" if value is not None else f"{key} is missing"
            )
        return value


class _Peer(NamedTuple):
    """Who asks."""

    pid: int
    uid: int

    @classmethod
    def of(cls, connection: socket.socket) -> _Peer:
        pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return cls(pid, uid)

    @property
    def may_ask(self) -> bool:
        return self.uid in (0, os.geteuid())

    def __str__(self) -> str:
        return f"user {self.uid}, process {self.pid}"


Operation = Callable[[Request], Awaitable[dict[str, Any]]]


class Control:
    """Answers requests on a socket.

    :param listener: one that listens there already, and goes on doing so
    :param operations: by name; what they raise of :class:`~qmpfilter.errors.QmpfilterError` is the answer
    """

    def __init__(self, path: str, operations: Mapping[str, Operation], listener: socket.socket | None = None) -> None:
        self._address = UnixAddress(path)
        self._listener = listener
        self._operations = operations
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.

        :raises HostError: somebody else does, or the path cannot be used
        """
        listener = self._listener or self._address.listen()
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MOST, **_LEAVES_PATH)

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._listener is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._address.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            connection = writer.get_extra_info("socket")
            peer = _Peer.of(connection)
            while line := await _request(reader, writer):
                if not peer.may_ask:
                    await _say(writer, _error(HostError("only root and the daemon's own user may ask")))
                    break
                await _say(writer, await self._answer(line, str(peer), connection))
        except (OSError, TimeoutError, asyncio.CancelledError):
            # Whoever asked has gone, or the daemon goes.
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, line: bytes, peer: str, connection: socket.socket) -> dict[str, Any]:
        try:
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise HostError(f"not a request: no JSON ({error})") from None
            if not isinstance(values, dict):
                raise HostError("not a request: no JSON object")
            request = Request(values, peer, lambda: not _has_gone(connection))
            name = request.text("op")
            if name not in self._operations:
                raise HostError(f"no such op: {name!r}; there are {', '.join(self._operations)}")
            async with asyncio.timeout(_OPERATION_SECONDS):
                return await self._operations[name](request)
        except QmpfilterError as error:
            return _error(error)
        except TimeoutError:
            return _error(HostError(f"nothing came of it within {_OPERATION_SECONDS:g} s"))
        except OSError as error:
            return _error(HostError(str(error)))
        except Exception as error:
            _log.exception("a request")
            return _error(BugError(f"{type(error).__name__}: {error}"))


def _has_gone(connection: socket.socket) -> bool:
    """Its other end is closed; one that only says no more is not."""
    if connection.fileno() < 0:
        return True
    look = select.poll()
    look.register(connection.fileno(), 0)
    return bool(look.poll(0))


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The next line; nothing at the end, or when that is not worth waiting for."""
    try:
        async with asyncio.timeout(_REQUEST_SECONDS):
            return await reader.readline()
    except ValueError:
        await _say(writer, _error(HostError(f"a request may have {MOST} bytes and no more")))
        # With bytes unread the connection would break, and the answer be lost.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REST_SECONDS):
                while await reader.read(MOST):
                    pass
    except TimeoutError:
        await _say(writer, _error(HostError(f"no request within {_REQUEST_SECONDS:g} s")))
    return b""


async def _say(writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
    async with asyncio.timeout(_REQUEST_SECONDS):
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()


def _error(error: QmpfilterError) -> dict[str, Any]:
    blame = "policy" if isinstance(error, PolicyError) else "bug" if isinstance(error, BugError) else "host"
    return {"error": str(error), "blame": blame}
