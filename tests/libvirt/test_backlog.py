# SPDX-License-Identifier: GPL-2.0-or-later
"""What this kernel tells of sockets that listen."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from qmpfilter.libvirt import backlog
from qmpfilter.libvirt.backlog import Family, backlogs


@pytest.mark.parametrize(("family", "where"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"),
                                               (socket.AF_UNIX, "")])  # fmt: skip
def test_how_many_may_wait(tmp_path: Path, family: socket.AddressFamily, where: str) -> None:
    with ExitStack() as stack:
        ends = [stack.enter_context(socket.socket(family)) for _ in range(300)]
        for number, end in enumerate(ends):
            end.bind((where, 0) if where else str(tmp_path / str(number)))
            end.listen(1 + number % 100)
        known = backlogs(set(Family))
        assert [known[os.fstat(end.fileno()).st_ino] for end in ends] == [1 + number % 100 for number in range(300)]


def test_what_the_kernel_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "_SOCK_DIAG_BY_FAMILY", 0xFFF)
    with pytest.raises(OSError, match="Invalid argument"):
        backlogs({Family.TCP})
