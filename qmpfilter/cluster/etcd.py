# SPDX-License-Identifier: GPL-2.0-or-later
"""A cluster's store in etcd 3.4 or newer, over its HTTP gateway.

What a prefix looks like is the number of its keys and the newest revision of one: while both are the same, so is
every entry, because etcd never gives a revision twice. So a watch asks for these two, every other second: few hundred
bytes, however large the store is, that no compaction invalidates, and that find out at once that the server is gone.
A stream of events is as silent when the server is cut off as when nothing happens. Opened anew often enough to tell,
every 5 s, it costs etcd 3.4 as much: 5.5 ms of processor each time over TLS, asking 2.3 ms.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import requests
from etcd3gw import Etcd3Client
from etcd3gw.exceptions import ConnectionFailedError, ConnectionTimeoutError, Etcd3Exception
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from qmpfilter.cluster.address import Access, Endpoint
from qmpfilter.cluster.store import Entry, Lease, NumberedLease, Sight, checked_data, checked_key
from qmpfilter.errors import ChangedError, HostError, StoreAwayError

__all__ = ["EtcdStore"]

_POLL_SECONDS: Final = 2.0
# A timeout of nothing is none.
_LEAST_SECONDS: Final = 0.01

_API: Final = "/v3/"
# Codes of gRPC, which the gateway gives next to those of HTTP.
_NOT_FOUND: Final = 5
_UNAUTHENTICATED: Final = 16
# With other codes, according to the version.
_TOKEN_OVER: Final = ("user name is empty", "invalid auth token", "revision of auth store is old")


class _Refused(Exception):
    """The server answered, and it was no."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


class EtcdStore:
    """The store in etcd, below a namespace of its own.

    :param endpoints: tried in turn from the one that answered last
    :raises HostError: a file that the access names cannot be read
    """

    def __init__(self, protocol: str, endpoints: Sequence[Endpoint], namespace: str, access: Access) -> None:
        for file in (access.ca, access.certificate, access.key):
            if file is not None:
                _contents(file)
        self._protocol = protocol
        self._endpoints = tuple(endpoints)
        self._current = 0
        self._namespace = namespace
        self._access = access
        if access.user is not None:
            self._password()
        self._session = requests.Session()
        # Neither a proxy nor a ~/.netrc of whoever started this.
        self._session.trust_env = False
        if access.ca is not None:
            self._session.verify = str(access.ca)
        if access.certificate is not None:
            self._session.cert = (str(access.certificate), str(access.key or access.certificate))
        self._token: str | None = None
        self._closed = threading.Event()

    def get(self, key: str) -> Entry | None:
        answer = self._ask("kv/range", {"key": self._encoded(key)})
        found = self._found(answer)
        return found[0] if found else None

    def entries(self, prefix: str) -> list[Entry]:
        return self._found(self._ask("kv/range", self._below(prefix)))

    def put(self, key: str, data: bytes, *, unless_changed: str | None) -> Entry:
        encoded = self._encoded(key)
        put = {"request_put": {"key": encoded, "value": _base64(checked_data(key, data))}}
        return Entry(key, data, self._if_unchanged(key, encoded, unless_changed, put))

    def put_always(self, key: str, data: bytes, lease: Lease | None = None) -> Entry:
        body: dict[str, object] = {"key": self._encoded(key), "value": _base64(checked_data(key, data))}
        if lease is not None:
            assert isinstance(lease, NumberedLease)
            body["lease"] = lease.identity
        try:
            return Entry(key, data, self._revision(self._asked("kv/put", body, again=True)))
        except _Refused as refused:
            if lease is not None and refused.code == _NOT_FOUND:
                raise ChangedError(
                    f"{key}: the lease ran out before it was written; a new one is needed."
                ) from refused
            self._away(refused)

    def delete(self, key: str, *, unless_changed: str) -> None:
        encoded = self._encoded(key)
        self._if_unchanged(key, encoded, unless_changed, {"request_delete_range": {"key": encoded}})

    def lease(self, seconds: float) -> Lease:
        answer = self._ask("lease/grant", {"TTL": math.ceil(seconds)})
        with self._understood():
            return NumberedLease(self, str(int(answer["ID"])), int(answer["TTL"]))

    def watch(self, prefix: str, since: str | None, seconds: float) -> Sight:
        late = time.monotonic() + seconds
        newest = {**self._below(prefix), "sort_target": "MOD", "sort_order": "DESCEND", "limit": 1, "keys_only": True}
        while True:
            answer = self._ask("kv/range", newest)
            with self._understood():
                revision = answer["kvs"][0]["mod_revision"] if "kvs" in answer else 0
                cursor = f"{answer['header']['cluster_id']}-{answer.get('count', 0)}-{revision}"
            if cursor != since:
                return Sight(True, cursor)
            # What comes in the last of these pauses is seen by the next watch.
            pause = max(0.0, min(late - time.monotonic(), _POLL_SECONDS))
            if self._closed.wait(pause) or time.monotonic() >= late:
                return Sight(False, cursor)

    def close(self) -> None:
        self._closed.set()
        self._session.close()

    def renew(self, identity: str) -> bool:
        """Begin a lease's time anew; False if it ran out."""
        answer = self._ask("lease/keepalive", {"ID": identity})
        with self._understood():
            return int(answer["result"].get("TTL", 0)) > 0

    def end(self, identity: str) -> None:
        """End a lease."""
        try:
            self._asked("kv/lease/revoke", {"ID": identity}, again=True)
        except _Refused as refused:
            if refused.code != _NOT_FOUND:
                self._away(refused)

    def _encoded(self, key: str) -> str:
        return _base64(f"{self._namespace}/{checked_key(key)}".encode())

    def _below(self, prefix: str) -> dict[str, object]:
        path = f"{self._namespace}/{checked_key(prefix)}" if prefix else self._namespace
        # What follows the slash in ASCII ends the range.
        return {"key": _base64(f"{path}/".encode()), "range_end": _base64(f"{path}0".encode())}

    def _found(self, answer: Mapping[str, Any]) -> list[Entry]:
        entries = []
        with self._understood():
            for one in answer.get("kvs", ()):
                key = base64.b64decode(one["key"]).decode("utf-8", "replace").removeprefix(f"{self._namespace}/")
                with contextlib.suppress(HostError):
                    # Not if it is somebody else's.
                    checked_key(key)
                    entries.append(Entry(key, base64.b64decode(one.get("value", "")), str(int(one["mod_revision"]))))
        return entries

    def _if_unchanged(self, key: str, encoded: str, revision: str | None, then: Mapping[str, object]) -> str:
        changed = ChangedError(f"{key}: somebody else changed it in the meantime.")
        if revision is not None and not revision.isdecimal():
            raise changed
        unchanged = {"key": encoded, "target": "MOD", "result": "EQUAL", "mod_revision": revision or "0"}
        try:
            # Sent twice, the second would say that somebody, the first, had changed it.
            answer = self._asked("kv/txn", {"compare": [unchanged], "success": [then]}, again=False)
        except _Refused as refused:
            self._away(refused)
        if not answer.get("succeeded"):
            raise changed
        return self._revision(answer)

    def _revision(self, answer: Mapping[str, Any]) -> str:
        with self._understood():
            return str(int(answer["header"]["revision"]))

    def _ask(self, path: str, body: Mapping[str, object]) -> Mapping[str, Any]:
        try:
            return self._asked(path, body, again=True)
        except _Refused as refused:
            self._away(refused)

    def _asked(self, path: str, body: Mapping[str, object], *, again: bool) -> Mapping[str, Any]:
        """The answer of one endpoint that gives any.

        :param again: whether the request may be sent to another one when it is unknown whether it was received
        :raises _Refused: the answer is no
        :raises StoreAwayError: there is no answer
        """
        late = time.monotonic() + self._access.seconds
        why: list[str] = []
        for left in range(len(self._endpoints), 0, -1):
            endpoint = self._endpoints[self._current]
            client = Etcd3Client(endpoint.host, endpoint.port, self._protocol, api_path=_API, session=self._session)
            now = time.monotonic()
            try:
                return self._let_in(client, path, body, now + max(_LEAST_SECONDS, (late - now) / left))
            except (ConnectionFailedError, ConnectionTimeoutError, OSError) as error:
                why.append(f"{endpoint}: {_why(error)}")
                self._current = (self._current + 1) % len(self._endpoints)
                if not again and not _never_sent(error):
                    break
        raise StoreAwayError(f"The etcd server does not answer: {'; '.join(why)}.")

    def _let_in(self, client: Etcd3Client, path: str, body: Mapping[str, object], late: float) -> Mapping[str, Any]:
        try:
            return self._posted(client, path, body, late, self._token)
        except _Refused as refused:
            over = refused.code == _UNAUTHENTICATED or any(text in str(refused) for text in _TOKEN_OVER)
            if not over or self._access.user is None:
                raise
        # A token is short-lived, and gone when the server was started again. With such a one it gives no other.
        who = {"name": self._access.user, "password": self._password()}
        answer = self._posted(client, "auth/authenticate", who, late, None)
        with self._understood():
            token = self._token = str(answer["token"])
        return self._posted(client, path, body, late, token)

    def _posted(
        self, client: Etcd3Client, path: str, body: Mapping[str, object], late: float, token: str | None
    ) -> Mapping[str, Any]:
        client.timeout = max(_LEAST_SECONDS, late - time.monotonic())
        headers = {} if token is None else {"Authorization": token}
        try:
            with self._understood():
                return dict(client.post(client.get_url(path), json=body, headers=headers))
        except (ConnectionFailedError, ConnectionTimeoutError):
            raise
        except Etcd3Exception as error:
            try:
                answer = json.loads(error.detail_text or "")
                raise _Refused(str(answer["message"]), int(answer["code"])) from error
            except (ValueError, KeyError, TypeError):
                raise _Refused(f"{error} {error.detail_text or ''}".strip(), None) from error

    def _password(self) -> str:
        if self._access.password_file is None:
            raise HostError(f"The etcd user {self._access.user} takes a password file.")
        return _contents(self._access.password_file).partition("\n")[0]

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise StoreAwayError(f"{self._endpoints[self._current]} does not answer as etcd does.") from error

    def _away(self, refused: _Refused) -> NoReturn:
        raise StoreAwayError(f"The etcd server refuses: {refused}.") from refused


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _contents(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"{file}: {error.strerror if isinstance(error, OSError) else 'not a text file'}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was wrapped around, outermost first."""
    one: object = error
    while isinstance(one, BaseException):
        yield one
        inner = [getattr(one, "reason", None), *one.args, one.__cause__, one.__context__]
        one = next((cause for cause in inner if isinstance(cause, BaseException)), None)


def _why(error: BaseException) -> str:
    """What the innermost error says: the others repeat it, with names of objects in Python."""
    *_, innermost = _causes(error)
    if isinstance(error, ConnectionTimeoutError):
        return "no answer in time"
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    return getattr(innermost, "detail_text", None) or str(innermost)


def _never_sent(error: BaseException) -> bool:
    """There was no connection to send anything on."""
    return any(isinstance(cause, NewConnectionError | ConnectTimeoutError | ssl.SSLError) for cause in _causes(error))
