# SPDX-License-Identifier: GPL-2.0-or-later
"""Names are printable ASCII or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpfilter.errors import FramingError
from qmpfilter.wire.names import is_name, name_at
from tests.helpers.parse import raises_at


@pytest.mark.parametrize("raw", [b"ram", b"0000:00:02.0/virtio-net", b"/rom@etc/acpi/tables", b" ", b"~" * 255])
def test_names(raw: bytes) -> None:
    assert is_name(raw)
    assert name_at(raw, 7, "a test") == raw.decode()


@pytest.mark.parametrize("raw", [b"", b"\0", b"ram\n", b"\x1b[2J", b"\x7f", b"caf\xc3\xa9", b"\xff"])
def test_no_names(raw: bytes) -> None:
    assert not is_name(raw)
    with raises_at(FramingError, 7, "a printable name of a test"):
        name_at(raw, 7, "a test")


@given(st.binary(max_size=8))
def test_a_name_is_bytes_from_20_to_7e(raw: bytes) -> None:
    assert is_name(raw) == (bool(raw) and all(0x20 <= byte <= 0x7E for byte in raw))
