# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host remembers of its cluster."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from qmpfilter.cluster.rollout import Switch
from qmpfilter.daemon.known import Known, KnownFile
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import Mode
from tests.helpers.cluster import ANNEX, host, rollout

HOSTS = [host("a", "one", *ANNEX, addresses=("10.0.0.1", "x")), host("b", "one", addresses=("10.0.0.2", "x"))]
KNOWN = Known(rollout({"one": Mode.ANNEX}), Switch("me", "now"), {one.name: one for one in HOSTS}, "no reason")


@pytest.mark.parametrize("known", [KNOWN, Known()])
def test_it_comes_back(tmp_path: Path, known: Known) -> None:
    file = KnownFile(tmp_path / "known.json")
    file.write(known)
    read, age = file.read()
    assert read == known
    assert 0 <= age < 600


def test_nothing_was_heard_for_ever(tmp_path: Path) -> None:
    file = KnownFile(tmp_path / "known.json")
    file.heard(0)
    assert file.read() == (Known(), math.inf)


@pytest.mark.parametrize(("ahead", "age"), [(-3600, 3600.0), (3600, math.inf)])
def test_the_file_tells_when_it_was_heard_and_a_clock_that_was_set_back_is_not_believed(
    tmp_path: Path, ahead: float, age: float
) -> None:
    path = tmp_path / "known.json"
    KnownFile(path).write(KNOWN)
    os.utime(path, (time.time() + ahead,) * 2)
    assert KnownFile(path).read()[1] == pytest.approx(age, abs=600)
    KnownFile(path).heard(0)
    assert KnownFile(path).read()[1] < 600


def test_half_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    KnownFile(path).write(KNOWN)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(HostError, match=r"known.json: a damaged record"):
        KnownFile(path).read()


@pytest.mark.parametrize(
    ("name", "found"), [("a", "a"), ("10.0.0.1", "a"), ("10.0.0.2", "b"), ("x", None), ("c", None), ("", None)]
)
def test_a_host_is_found_by_name_or_address_unless_two_claim_it(name: str, found: str | None) -> None:
    at = KNOWN.host_at(name)
    assert (at and at.name) == found
