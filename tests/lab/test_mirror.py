# SPDX-License-Identifier: GPL-2.0-or-later
"""The mirror is found in both forms of apt's configuration, and other archives are not taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.mirror import Mirror, read_mirror

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
# another
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""
OTHER_LIST = "deb https://other.example/apt cloud-sdk-bookworm main\n"


def _write(apt: Path, name: str, text: str) -> None:
    file = apt / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_deb822(tmp_path: Path) -> None:
    _write(tmp_path, "sources.list.d/debian.sources", DEB822)
    _write(tmp_path, "sources.list.d/a.list", OTHER_LIST)
    assert read_mirror(tmp_path) == Mirror("http://mirror.example/debian", "http://mirror.example/debian-security")


def test_one_line_form_of_another_release(tmp_path: Path) -> None:
    _write(
        tmp_path, "sources.list", "# deb http://old.example/ x main\ndeb [arch=amd64] http://m.example/d forky main\n"
    )
    assert read_mirror(tmp_path) == Mirror("http://m.example/d", None)


def test_disabled_stanza_does_not_count(tmp_path: Path) -> None:
    _write(tmp_path, "sources.list.d/debian.sources", "Enabled: no\n" + DEB822.partition("\n\n")[0])
    with pytest.raises(LookupError, match="names no archive"):
        read_mirror(tmp_path)


def test_no_archive_of_a_release(tmp_path: Path) -> None:
    _write(tmp_path, "sources.list.d/a.list", OTHER_LIST)
    with pytest.raises(LookupError, match="cloud-sdk-bookworm"):
        read_mirror(tmp_path)
