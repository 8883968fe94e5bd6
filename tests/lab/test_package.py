# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host of the laboratory gets of the package."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.lab import package


@pytest.mark.parametrize("etcd", [True, False])
def test_the_client_of_etcd_is_there_if_it_is_here(
    etcd: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> ModuleSpec | None:
        return find_spec(name) if etcd or name not in package.FOR_ETCD else None

    monkeypatch.setattr(package, "find_spec", found)
    package.unpack_package(tmp_path)
    there = {path.name for path in tmp_path.iterdir()}
    assert {"qmpfilter", "construct", "msgspec", "qemu"} <= there
    compiled = {path.name.split(".")[1].split("-")[1] for path in (tmp_path / "msgspec").glob("*.so")}
    assert compiled == {"311", "312", "313"}
    assert ("etcd3gw" in there) is etcd
    assert any(name.endswith(".dist-info") for name in there) is etcd
