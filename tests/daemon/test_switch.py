# SPDX-License-Identifier: GPL-2.0-or-later
"""The kill switch of a host, which its operator and its cluster may both throw."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qmpfilter.daemon.switch import ClustersSwitch, KillSwitch
from qmpfilter.errors import HostError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "off"


def left(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir())


def test_the_clusters_comes_and_goes(path: Path) -> None:
    switch = KillSwitch(path)
    for _ in range(2):
        switch.follow(True)
        assert path.exists()
        assert switch.is_clusters
    for _ in range(2):
        switch.follow(False)
        assert left(path) == []


THROWN: dict[str, Callable[[Path], None]] = {
    "touch": lambda path: path.touch(),
    "the command": lambda path: KillSwitch(path).take(),
    "a truncation": lambda path: os.truncate(path, 0) if path.exists() else path.touch(),
    "a new time": lambda path: os.utime(path) if path.exists() else path.touch(),
}


@pytest.mark.parametrize("throw", THROWN.values(), ids=THROWN)
@pytest.mark.parametrize("clusters_first", [False, True])
def test_the_operators_is_never_undone_by_the_cluster(
    path: Path, throw: Callable[[Path], None], clusters_first: bool
) -> None:
    switch = KillSwitch(path)
    if clusters_first:
        switch.follow(True)
    throw(path)
    switch.follow(True)
    switch.follow(False)
    assert left(path) == ["off"]
    assert not switch.is_clusters
    switch.release()
    assert left(path) == []


def test_what_is_removed_by_hand_is_made_again_while_the_cluster_is_off(path: Path) -> None:
    switch = KillSwitch(path)
    switch.follow(True)
    path.unlink()
    switch.follow(True)
    assert switch.is_clusters


def test_a_touch_in_the_middle_of_the_removal_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = KillSwitch(path)
    switch.follow(True)
    rename = Path.rename

    def late(one: Path, to: Path) -> Path:
        one.touch()
        return rename(one, to)

    monkeypatch.setattr(Path, "rename", late)
    switch.follow(False)
    assert left(path) == ["off"]


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    switch = KillSwitch(tmp_path / "gone" / "off")
    with pytest.raises(HostError, match="gone/off"):
        switch.follow(True)
    switch.follow(False)


def test_the_clusters_stays_until_the_cluster_was_asked(path: Path) -> None:
    KillSwitch(path).follow(True)
    clusters = ClustersSwitch(KillSwitch(path))
    clusters.follow(False)
    assert path.exists()
    assert clusters.holds(False)
    assert "was not reached since the daemon was started" in clusters.unheard
    clusters.heard = True
    assert clusters.unheard == ""
    clusters.follow(False)
    assert not path.exists()
    assert not clusters.holds(False)


def test_before_the_cluster_was_asked_the_file_is_made_all_the_same(path: Path) -> None:
    clusters = ClustersSwitch(KillSwitch(path))
    clusters.follow(True)
    assert path.exists()
    assert clusters.holds(True)


def test_what_cannot_be_done_is_an_ailment_until_it_is(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clusters = ClustersSwitch(KillSwitch(path.parent / "gone" / "off"))
    for _ in range(2):
        clusters.follow(True)
        assert not clusters.holds(True)
        assert clusters.ailing.startswith("the cluster's kill switch cannot be turned on here: ")
    assert caplog.text.count("cannot be turned on here") == 1
    (path.parent / "gone").mkdir()
    clusters.follow(True)
    assert clusters.holds(True)
    assert clusters.ailing == ""


def test_the_operators_is_in_force_for_the_cluster_too_but_not_the_clusters(path: Path) -> None:
    KillSwitch(path).take()
    clusters = ClustersSwitch(KillSwitch(path))
    assert clusters.holds(True)
    assert not clusters.holds(False)
    assert clusters.unheard == ""
