# SPDX-License-Identifier: GPL-2.0-or-later
"""First bytes tell what a channel is, or that it cannot be relayed."""

from __future__ import annotations

import pytest

from qmpfilter.errors import UnsupportedError
from qmpfilter.relay.channel import Channel, channel_of, channel_of_any


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (b"QEVM", Channel.MAIN),
        (b"\x11\x22\x33\x44", Channel.MULTIFD),
        (b"\0\0\0\0", Channel.OTHER),
        (b"", Channel.OTHER),
        (b"NBDM", Channel.OTHER),
    ],
)
def test_known(first: bytes, kind: Channel) -> None:
    assert channel_of(first) is kind


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (b"QEVM", Channel.MAIN),
        (b"\x16\x03\x01\x02", Channel.MAIN),
        (b"\x08", Channel.MAIN),
        (b"\x11\x22\x33\x44", Channel.MULTIFD),
        (b"", Channel.OTHER),
    ],
)
def test_where_everything_passes(first: bytes, kind: Channel) -> None:
    assert channel_of_any(first) is kind


@pytest.mark.parametrize(
    ("first", "said"), [(b"\x16\x03\x01\x02", "tls-creds"), (b"QCPR", "descriptors"), (b"\x08\0\0\0", "resumed")]
)
def test_what_cannot_be_relayed(first: bytes, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        channel_of(first)
