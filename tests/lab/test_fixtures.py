# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixtures are those that the manifest lists, and it lists the whole corpus."""

from __future__ import annotations

import hashlib
import json
import lzma
from typing import Any

from tests.lab.record import FIXTURES, MANIFEST
from tests.lab.scenarios import CORPUS

MOST_BYTES = 5 << 20


def _listed() -> list[dict[str, Any]]:
    fixtures: list[dict[str, Any]] = json.loads(MANIFEST.read_text())["fixtures"]
    return fixtures


def _files(fixture: dict[str, Any]) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = []
    for value in fixture["files"].values():
        files += value if isinstance(value, list) else [value]
    return files


def test_whole_corpus_is_there() -> None:
    wanted = {f"{host}-{scenario.name}" for host, corpus in CORPUS.items() for scenario in corpus}
    assert {fixture["name"] for fixture in _listed()} == wanted


def test_files_are_what_the_manifest_says() -> None:
    listed = [file for fixture in _listed() for file in _files(fixture)]
    for file in listed:
        content = lzma.decompress((FIXTURES / file["file"]).read_bytes())
        assert len(content) == file["bytes"], file["file"]
        assert hashlib.sha256(content).hexdigest() == file["sha256"], file["file"]
    assert {path.name for path in FIXTURES.glob("*.xz")} == {file["file"] for file in listed}


def test_fixtures_stay_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.iterdir()) <= MOST_BYTES
