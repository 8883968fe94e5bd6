# SPDX-License-Identifier: GPL-2.0-or-later
"""What the two filters of a pair say to each other before the stream. Pure: bytes in, messages out.

Every connection between them begins with one message each way, after the handshake of TLS where there is one; all
that follows, either way, belongs to the migration and is none of this protocol's business. A message is

========= ===========================================================================================
8 bytes   the magic, ``qmpfpair``
4 bytes   length of what follows, big-endian, 2 to :data:`MOST`
the rest  a JSON object in UTF-8; keys that are not known are passed over
========= ===========================================================================================

The filter that connects speaks first, a hello:

``versions`` the versions of this protocol that it speaks, :data:`VERSION` and the one before; ``program``, its own
version, for the report; ``channel``, ``main`` or ``extra``; ``token``, 32 hexadecimal digits by chance, the same on
every connection of one migration; ``domain``, the guest's uuid, or empty.

The filter that accepts answers. Either it agrees: ``version``, the highest that both speak; ``program``; and on the
main channel ``formats``, the forms of nested state that may be sent to it (``legacy``, ``annex``, ``svm2-native``),
and ``facts``, its host's, of schema ``qmpfilter.host/1``. Or it refuses and closes: ``refused``, one sentence, and
``blame``, ``policy`` or ``host``.

Nothing of the stream is sent before the answer. The main channel is the first to be agreed on; an extra channel
belongs to it if its token is the same. A guest of another uuid than the accepting filter was told of is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from qmpfilter.errors import BugError, FramingError, HostError, LimitError, PolicyError, QmpfilterError
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.wire.framing import BE32

__all__ = ["FORMATS", "MAGIC", "MOST", "NATIVE", "SPOKEN", "VERSION", "Answer", "Hello", "Inbox", "agreed", "refusal"]

VERSION: Final = 1
SPOKEN: Final = tuple(version for version in (VERSION, VERSION - 1) if version)
"""The versions that are spoken here; there was none before the first."""
MAGIC: Final = b"qmpfpair"
MOST: Final = 1 << 18
"""Bytes of a message's JSON; the facts of a host are some 30 KB."""
NATIVE: Final = "svm2-native"
FORMATS: Final = ("legacy", "annex", NATIVE)
"""What a filter takes that converts."""

_HEAD: Final = len(MAGIC) + BE32.size
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")
_CHANNELS: Final = ("main", "extra")
_BLAMED: Final[dict[str, type[QmpfilterError]]] = {"policy": PolicyError, "host": HostError}


@dataclass(frozen=True, slots=True)
class Hello:
    """What the filter that connects says."""

    versions: tuple[int, ...]
    program: str
    main: bool
    token: str
    domain: str = ""

    def to_bytes(self) -> bytes:
        """The message."""
        channel = _CHANNELS[0] if self.main else _CHANNELS[1]
        return _message({
            "versions": self.versions, "program": self.program, "channel": channel, "token": self.token,
            "domain": self.domain,
        })  # fmt: skip

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Hello:
        """:raises HostError: it is no hello"""
        read = _Values("hello", values)
        versions = read.list("versions", int)
        channel, token = read.text("channel"), read.text("token")
        if channel not in _CHANNELS or not _TOKEN.fullmatch(token):
            raise HostError("the other filter's hello has a channel or a token that is none")
        return cls(tuple(versions), read.text("program"), channel == _CHANNELS[0], token, read.text("domain"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the filter that accepts says when it agrees.

    :param formats: of the main channel; empty for an extra one
    :param facts: of the main channel; None for an extra one
    """

    version: int
    program: str
    formats: tuple[str, ...] = ()
    facts: HostFacts | None = None

    def to_bytes(self) -> bytes:
        """The message."""
        facts = {} if self.facts is None else {"facts": self.facts.to_json(), "formats": self.formats}
        return _message({"version": self.version, "program": self.program, **facts})

    @classmethod
    def from_json(cls, values: dict[str, Any], spoken: Sequence[int] = SPOKEN) -> Answer:
        """:raises PolicyError: the other filter refused, and by its word the policy is to blame
        :raises HostError: it refused for another reason, or this is no answer
        """
        read = _Values("answer", values)
        if "refused" in values:
            blamed = _BLAMED.get(read.text("blame", "host"), HostError)
            raise blamed(f"the other filter refused: {read.text('refused')}")
        version = read.number("version")
        if version not in spoken:
            raise HostError(
                f"the other filter answered in version {version} of the protocol, which is not spoken here"
            )
        facts = HostFacts.from_json(json.dumps(values["facts"])) if "facts" in values else None
        return cls(version, read.text("program"), tuple(read.list("formats", str)), facts)


def agreed(hello: Hello, spoken: Sequence[int] = SPOKEN) -> int:
    """The version in which to go on.

    :raises HostError: there is none that both speak
    """
    common = set(spoken) & set(hello.versions)
    if not common:
        theirs, ours = (", ".join(map(str, sorted(versions))) or "none" for versions in (hello.versions, spoken))
        raise HostError(
            f"qmpfilter {hello.program} speaks versions {theirs} of the filters' protocol and this one {ours}: "
            "bring both hosts to the same version of qmpfilter, or to one before or after"
        )
    return max(common)


def refusal(cause: QmpfilterError) -> bytes:
    """The message that refuses."""
    return _message({"refused": str(cause), "blame": "policy" if isinstance(cause, PolicyError) else "host"})


class Inbox:
    """Reads one message, in whatever parts it comes, and never a byte beyond it."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def wanted(self) -> int:
        """So many bytes may be read next, at most; 0 when the message is complete."""
        if len(self._data) < _HEAD:
            return _HEAD - len(self._data)
        return _HEAD + self._length - len(self._data)

    def receive_data(self, data: bytes) -> None:
        """The next bytes.

        :raises FramingError: this is no message of a filter
        :raises LimitError: it is too long, or of no length
        """
        if len(data) > self.wanted:
            raise BugError("more was read than the message has")
        self._data += data
        begin = bytes(self._data[: len(MAGIC)])
        if not MAGIC.startswith(begin):
            raise FramingError(0, "a filter, which says qmpfpair first", begin)
        if len(self._data) >= _HEAD and not 2 <= self._length <= MOST:
            raise LimitError(len(MAGIC), f"a message of 2 to {MOST} bytes", str(self._length))

    def message(self) -> dict[str, Any]:
        """The message, once nothing more is wanted.

        :raises FramingError: it is no JSON object
        """
        if self.wanted:
            raise BugError("the message is not complete")
        try:
            values = json.loads(self._data[_HEAD:])
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise FramingError(_HEAD, "a JSON object", "something else")
        return values

    @property
    def _length(self) -> int:
        length: int = BE32.unpack_from(self._data, len(MAGIC))[0]
        return length


def _message(values: dict[str, Any]) -> bytes:
    text = json.dumps(values).encode()
    if len(text) > MOST:
        raise BugError(f"a message of {len(text)} bytes to the other filter")
    return MAGIC + BE32.pack(len(text)) + text


class _Values:
    """The values of a message, taken one by one.

    :raises HostError: (all methods) a value is missing or of the wrong kind
    """

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self._name = name
        self._values = values

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str):
            self._fail(key)
        return value

    def number(self, key: str) -> int:
        value = self._values.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            self._fail(key)
        return value

    def list(self, key: str, kind: type) -> list[Any]:
        values = self._values.get(key, [])
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            self._fail(key)
        return values

    def _fail(self, key: str) -> NoReturn:
        raise HostError(f"the other filter's {self._name} cannot be understood: {key}")
