# SPDX-License-Identifier: GPL-2.0-or-later
"""Where this machine gets Debian packages from, read from its own apt configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

APT = Path("/etc/apt")
_RELEASE = r"(?:buster|bullseye|bookworm|trixie|forky|sid|oldoldstable|oldstable|stable|testing|unstable)"
_MAIN_SUITE = re.compile(rf"^{_RELEASE}(?:-updates|-backports)?$")
_SECURITY_SUITE = re.compile(rf"^{_RELEASE}(?:-security|/updates)$")


@dataclass(frozen=True)
class Mirror:
    """Addresses of an archive of Debian and, if the machine has one, of its security archive."""

    archive: str
    security: str | None


@dataclass(frozen=True)
class _Source:
    uri: str
    suite: str
    components: tuple[str, ...]


def read_mirror(apt: Path = APT) -> Mirror:
    """The first archive that the configuration names for a Debian release, whichever release that is.

    Raises LookupError if it names none.
    """
    sources = list(_sources(apt))
    archives = [s.uri for s in sources if _MAIN_SUITE.match(s.suite) and "main" in s.components]
    securities = [s.uri for s in sources if _SECURITY_SUITE.match(s.suite) and "main" in s.components]
    if not archives:
        raise LookupError(f"{apt} names no archive of a Debian release; found suites {[s.suite for s in sources]}")
    return Mirror(archives[0], securities[0] if securities else None)


def _sources(apt: Path) -> list[_Source]:
    found: list[_Source] = []
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if not file.is_file():
            continue
        if file.suffix == ".sources":
            found += _read_deb822(file.read_text())
        elif file.suffix == ".list":
            found += _read_one_line(file.read_text())
    return found


def _read_one_line(text: str) -> list[_Source]:
    found = []
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*\]", " ", line.split("#")[0]).split()
        if len(words) >= 3 and words[0] == "deb":
            found.append(_Source(words[1], words[2], tuple(words[3:])))
    return found


def _read_deb822(text: str) -> list[_Source]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found = []
    for stanza in re.split(r"\n\s*\n", lines):
        fields = {
            name.lower(): value.split()
            for name, value in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
            continue
        components = tuple(fields.get("components", []))
        pairs = product(fields.get("uris", []), fields.get("suites", []))
        found += [_Source(uri, suite, components) for uri, suite in pairs]
    return found
