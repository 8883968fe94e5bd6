# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains that are about to arrive, over the daemon's end."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpfilter.daemon.announced import Announced

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"


@pytest.mark.parametrize("restarted", [False, True])
def test_an_arrival_is_known_until_it_is_taken(tmp_path: Path, restarted: bool) -> None:
    announced = Announced(tmp_path / "arrivals")
    assert UUID not in announced
    announced.add(UUID, "first")
    announced.add(UUID, "second")
    announced = Announced(tmp_path / "arrivals") if restarted else announced
    assert UUID in announced
    assert announced.take(UUID) == "second"
    assert UUID not in announced
    assert announced.take(UUID) is None
    assert list((tmp_path / "arrivals").iterdir()) == []


def test_without_a_file_this_daemon_knows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "arrivals").touch()
    announced = Announced(tmp_path / "arrivals")
    announced.add(UUID, "first")
    assert "a restart will not know of this arrival" in caplog.text
    assert UUID in announced
    assert announced.take(UUID) == "first"


def test_what_is_no_uuid_names_no_file(tmp_path: Path) -> None:
    announced = Announced(tmp_path / "arrivals")
    announced.add("../other", "first")
    assert list(tmp_path.iterdir()) == []
    assert announced.take("../other") == "first"
