# SPDX-License-Identifier: GPL-2.0-or-later
"""The hook among others in libvirt's directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpfilter.errors import HostError
from qmpfilter.libvirt.hookfiles import HookPlace, shipped_hook

SHIPPED = shipped_hook()
MODERN, ANCIENT = "qemu.d/50-qmpfilter", "qemu"


def script(path: Path, text: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(("modern", "name"), [(True, MODERN), (False, ANCIENT)])
def test_installed_once_and_removed(tmp_path: Path, modern: bool, name: str) -> None:
    place = HookPlace(tmp_path / "hooks", with_directory=modern)
    assert not place.look(SHIPPED).present
    assert place.install(SHIPPED)
    assert not place.install(SHIPPED)
    hook = tmp_path / "hooks" / name
    assert (hook.read_bytes(), hook.stat().st_mode & 0o777) == (SHIPPED.read_bytes(), 0o755)
    assert place.look(SHIPPED).current
    assert sorted(path.name for path in hook.parent.iterdir()) == [hook.name]
    assert place.remove()
    assert not place.remove()
    assert not hook.exists()


@pytest.mark.parametrize("mend", [lambda path: path.write_text("# an older one"), lambda path: path.chmod(0o644)])
def test_what_is_old_or_is_not_run_is_not_current(tmp_path: Path, mend: object) -> None:
    place = HookPlace(tmp_path)
    place.install(SHIPPED)
    assert callable(mend)
    hook = tmp_path / MODERN
    hook.write_bytes(SHIPPED.read_bytes())
    mend(hook)
    state = place.look(SHIPPED)
    assert (state.present, state.current) == (True, False)


def test_those_of_others_stay_and_leftovers_are_told(tmp_path: Path) -> None:
    others = script(tmp_path / "qemu.d/10-theirs"), script(tmp_path / "qemu")
    old = script(tmp_path / "qemu.d/50-qmpfilter.dpkg-old")
    copy = script(tmp_path / "qemu.d/99-copy", SHIPPED.read_text())
    script(tmp_path / "qemu.d/50-qmpfilter~", mode=0o644)
    place = HookPlace(tmp_path)
    place.install(SHIPPED)
    assert place.look(SHIPPED).leftovers == (old, copy)
    place.remove()
    assert all(path.exists() for path in (*others, old, copy))


def test_the_only_place_of_an_old_libvirt_may_be_taken(tmp_path: Path) -> None:
    theirs = script(tmp_path / "qemu")
    place = HookPlace(tmp_path, with_directory=False)
    with pytest.raises(HostError, match="have it call"):
        place.install(SHIPPED)
    with pytest.raises(HostError, match="not qmpfilter's"):
        place.remove()
    assert theirs.read_text() == "#!/bin/sh\n"
