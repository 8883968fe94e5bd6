# SPDX-License-Identifier: GPL-2.0-or-later
"""What setup.cfg requires has a place in the Debian package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[1]
DEPENDENCIES = ROOT / "examples/debian/dependencies.py"
SECONDS = 120.0


def told(root: Path, *what: str) -> str:
    return subprocess.run(
        [sys.executable, str(DEPENDENCIES), str(root), *what],
        check=True, capture_output=True, text=True, timeout=SECONDS,
    ).stdout  # fmt: skip


def test_packages_it_depends_on() -> None:
    depends = told(ROOT, "depends").strip().split(", ")
    assert "python3 (>= 3.11)" in depends
    assert "python3-click (<< 9)" in depends
    assert {one.split()[0] for one in depends} == {"python3", "python3-click", "python3-rich"}
    assert "python3-prometheus-client" in told(ROOT, "suggests")


def test_a_requirement_that_has_no_place_yet(tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text("[options]\npython_requires = >=3.11\ninstall_requires =\n    surprise>=1\n")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        told(tmp_path, "depends")
    assert "where Debian gets surprise from" in failed.value.stderr


def test_what_is_copied_can_be_imported_alone(tmp_path: Path) -> None:
    for what in ("copy", "compiled"):
        told(ROOT, what, str(tmp_path / "lib"), str(tmp_path / "doc"))
    where = "import construct, msgspec, qemu.qmp as qmp; print(construct.__file__, msgspec.__file__, qmp.__file__)"
    code = f"import sys; sys.path[:0] = [{str(tmp_path / 'lib')!r}]; {where}"
    printed = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True, timeout=SECONDS
    ).stdout
    assert all(file.startswith(str(tmp_path / "lib")) for file in printed.split())
    assert sorted(path.name for path in (tmp_path / "doc").iterdir()) == ["construct", "msgspec", "qemu.qmp"]
