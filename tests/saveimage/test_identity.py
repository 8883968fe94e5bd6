# SPDX-License-Identifier: GPL-2.0-or-later
"""Name and uuid come out of the XML, and nothing else does."""

from __future__ import annotations

import contextlib
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpfilter.errors import ImageError, LimitError, StreamError
from qmpfilter.saveimage.identity import DomainIdentity, IdentityReader
from tests.saveimage.images import NAME, SECRET, UUID, XML


def identity(xml: bytes, piece: int = 1 << 16) -> DomainIdentity:
    reader = IdentityReader(92)
    for start in range(0, len(xml), piece):
        reader.feed(xml[start : start + piece])
    return reader.finish()


def domain(inner: str) -> bytes:
    return f"<domain type='kvm'>{inner}</domain>".encode()


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
def test_in_pieces(piece: int) -> None:
    assert identity(XML + b"\0", piece) == DomainIdentity(NAME, uuid.UUID(UUID))


def test_stops_as_soon_as_both_are_known() -> None:
    reader = IdentityReader(92)
    reader.feed(XML[: XML.index(b"<metadata")])
    assert reader.done
    reader.feed(b"<<< not XML")
    assert reader.finish().name == NAME


def test_nothing_after_the_nul_counts() -> None:
    with pytest.raises(ImageError, match="name"):
        identity(b"<domain>\0<name>late</name></domain>")


def test_names_with_entities_and_other_alphabets() -> None:
    assert identity(domain(f"<uuid>\n{UUID.upper()} </uuid><name>a&amp;b &#233; ж</name>")).name == "a&b é ж"


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"\0",
        b"not XML",
        b"<domainstatus><name>a</name></domainstatus>",
        domain(f"<name>{SECRET}</name>"),
        domain(f"<name></name><uuid>{UUID}</uuid>"),
        domain(f"<name>a</name><uuid>{SECRET}</uuid>"),
        domain(f"<name>{SECRET}</uuid>"),
        domain(f"<os><name>a</name><uuid>{UUID}</uuid></os>"),
        domain(f"<name>{SECRET}</name>\xff"[:-10]).replace(b"<name>", b"<name>\xff"),
        f"<!DOCTYPE domain [<!ENTITY e '{SECRET}'>]>".encode() + domain(f"<name>&e;</name><uuid>{UUID}</uuid>"),
        domain(f"<name>&{SECRET};</name>"),
    ],
)
def test_refusals_quote_nothing(xml: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        identity(xml)
    assert SECRET not in str(caught.value)
    assert 92 <= caught.value.offset <= 92 + len(xml)


def test_overlong_name() -> None:
    with pytest.raises(LimitError):
        identity(domain(f"<name>{'n' * 5000}</name>"))


@given(st.lists(st.tuples(st.integers(0, len(XML) - 1), st.binary(max_size=3)), max_size=4))
def test_mutations_give_typed_errors_only(changes: list[tuple[int, bytes]]) -> None:
    xml = bytearray(XML)
    for offset, replacement in changes:
        xml[offset : offset + 2] = replacement
    with contextlib.suppress(StreamError):
        identity(bytes(xml), 50)
