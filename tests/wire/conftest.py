# SPDX-License-Identifier: GPL-2.0-or-later
"""Short names for cases that are whole pages of bytes."""

from __future__ import annotations

_SHOWN = 12


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes by their last few, which are those that a case is about."""
    return (val[-_SHOWN:].hex() or "empty") if isinstance(val, bytes) else None
