# SPDX-License-Identifier: GPL-2.0-or-later
"""The error tree: its shape is what its module draws, its messages name offset, expected and found."""

from __future__ import annotations

import inspect
import re

import pytest

from qmpfilter import errors
from qmpfilter.errors import FramingError


def test_the_drawing_is_the_tree() -> None:
    classes = {
        name: value
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if value.__module__ == errors.__name__
    }
    drawn = {"QmpfilterError": "Exception"}
    branch = ""
    for nested, name in re.findall(r"(│   )?[├└]── (\w+)", errors.__doc__ or ""):
        drawn[name] = branch if nested else "QmpfilterError"
        branch = branch if nested else name
    assert drawn == {name: value.__base__.__name__ for name, value in classes.items() if value.__base__}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (b"\x7e\x00", "found 7e 00"),
        (b"", "found nothing"),
        (bytes(30), "found " + "00 " * 24 + "..."),
        ("the end of input", "found the end of input"),
    ],
)
def test_messages_name_offset_expected_and_found(found: bytes | str, said: str) -> None:
    error = FramingError(0x1234, "a footer", found)
    assert str(error) == f"offset 0x1234: expected a footer, {said}"
    assert (error.offset, error.expected) == (0x1234, "a footer")
