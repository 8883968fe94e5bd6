# SPDX-License-Identifier: GPL-2.0-or-later
"""What the two filters of a pair say: transcripts, in any division, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from qmpfilter.errors import FramingError, HostError, LimitError, PolicyError, QmpfilterError
from qmpfilter.relay.pair_protocol import FORMATS, MAGIC, MOST, Answer, Hello, Inbox, agreed, refusal
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.version import Version
from qmpfilter.wire.framing import BE32

TOKEN = "0123456789abcdef" * 2
HELLO = Hello((2, 1), "1.2.3", True, TOKEN, "8d7a1d9f-6f4a-4a3c-9d7e-1f2a3b4c5d6e")
FACTS = HostFacts(kernel=Version.parse("6.12.1"), parameters={"kvm_amd": {"npt": "1"}}, formats=("legacy", "annex"))
ANSWER = Answer(1, "1.2.3", FORMATS, FACTS)


def read(parts: Iterable[bytes]) -> dict[str, Any]:
    inbox = Inbox()
    for part in parts:
        inbox.receive_data(part)
    assert inbox.wanted == 0
    return inbox.message()


def whole(data: bytes) -> dict[str, Any]:
    """A message as it is read from a connection: never more than is wanted."""
    inbox, rest = Inbox(), data
    while count := inbox.wanted:
        inbox.receive_data(rest[:count])
        rest = rest[count:]
    assert rest == b""
    return inbox.message()


def test_hello_in_bytes() -> None:
    data = Hello((1,), "0.1", False, TOKEN).to_bytes()
    text = (
        b'{"versions": [1], "program": "0.1", "channel": "extra", "token": "0123456789abcdef0123456789abcdef", '
        b'"domain": ""}'
    )
    assert data == b"qmpfpair" + BE32.pack(len(text)) + text


@pytest.mark.parametrize("hello", [HELLO, Hello((1,), "", False, TOKEN)])
def test_hello_there_and_back(hello: Hello) -> None:
    assert Hello.from_json(whole(hello.to_bytes())) == hello


@pytest.mark.parametrize("answer", [ANSWER, Answer(1, "0.1")])
def test_answer_there_and_back(answer: Answer) -> None:
    assert Answer.from_json(whole(answer.to_bytes())) == answer


@pytest.mark.parametrize("data", [HELLO.to_bytes(), ANSWER.to_bytes(), refusal(HostError("no"))])
def test_byte_by_byte(data: bytes) -> None:
    assert read(data[at : at + 1] for at in range(len(data))) == whole(data)


def test_what_is_not_known_is_passed_over() -> None:
    assert Hello.from_json({**whole(HELLO.to_bytes()), "lunch": 1}) == HELLO
    assert Answer.from_json({**whole(ANSWER.to_bytes()), "lunch": 1}) == ANSWER


@pytest.mark.parametrize(
    ("ours", "theirs", "version"),
    [
        ((1,), (1,), 1),
        ((2, 1), (1,), 1),
        ((1,), (2, 1), 1),
        ((3, 2), (2, 1), 2),
        ((3, 2), (4, 3), 3),
        ((3, 2), (1,), None),
        ((1,), (3, 2), None),
        ((1,), (), None),
    ],
)
def test_versions(ours: tuple[int, ...], theirs: tuple[int, ...], version: int | None) -> None:
    hello = Hello(theirs, "9", True, TOKEN)
    if version is not None:
        assert agreed(hello, ours) == version
        assert Answer.from_json(whole(Answer(version, "9").to_bytes()), theirs).version == version
        return
    with pytest.raises(HostError, match="bring both hosts"):
        agreed(hello, ours)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"QEVM\0\0\0\3", FramingError),
        (b"x", FramingError),
        (b"qmpfpaiR", FramingError),
        (MAGIC + BE32.pack(1), LimitError),
        (MAGIC + BE32.pack(MOST + 1), LimitError),
        (MAGIC + BE32.pack(0xFFFFFFFF), LimitError),
        (MAGIC + BE32.pack(2) + b"[]", FramingError),
        (MAGIC + BE32.pack(2) + b"\xff\xff", FramingError),
        (MAGIC + BE32.pack(100_000) + b"[" * 100_000, FramingError),
    ],
)
def test_what_is_no_message(data: bytes, error: type[QmpfilterError]) -> None:
    with pytest.raises(error):
        whole(data)


@pytest.mark.parametrize("byte", [b"\0", b"\x16", b"G", b"{"])
def test_a_stranger_is_known_by_its_first_byte(byte: bytes) -> None:
    with pytest.raises(FramingError):
        Inbox().receive_data(byte)


@pytest.mark.parametrize(
    "change",
    [
        {"versions": "1"},
        {"versions": ["1"]},
        {"versions": [True]},
        {"program": None},
        {"channel": "lunch"},
        {"token": "short"},
        {"token": TOKEN + "\n"},
        {"domain": 7},
    ],
)
def test_what_is_no_hello(change: dict[str, Any]) -> None:
    with pytest.raises(HostError, match="hello"):
        Hello.from_json({**whole(HELLO.to_bytes()), **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": None}, "version"),
        ({"version": True}, "version"),
        ({"version": 7}, "version 7"),
        ({"formats": "annex"}, "formats"),
        ({"facts": {}}, "no schema"),
        ({"facts": 1}, "object"),
        ({"refused": 1}, "refused"),
    ],
)
def test_what_is_no_answer(change: dict[str, Any], said: str) -> None:
    with pytest.raises(HostError, match=said):
        Answer.from_json({**whole(ANSWER.to_bytes()), **change})


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (PolicyError("not this guest"), PolicyError),
        (HostError("not here"), HostError),
        (FramingError(0, "this", "that"), HostError),
    ],
)
def test_refusals(cause: QmpfilterError, error: type[QmpfilterError]) -> None:
    with pytest.raises(error) as caught:
        Answer.from_json(whole(refusal(cause)))
    assert type(caught.value) is error
    assert str(caught.value) == f"the other filter refused: {cause}"


def test_blame_of_a_kind_that_is_not_known() -> None:
    with pytest.raises(HostError, match="so it is"):
        Answer.from_json(json.loads('{"refused": "so it is", "blame": "weather"}'))
