# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions are read, and a range of releases says no more than was looked up."""

from __future__ import annotations

import pytest

from qmpfilter.errors import PolicyError
from qmpfilter.verdict.version import Releases, Version, kernel_version

DEBIAN = "Linux version {} (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld) {}"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("6.1.192", Version(6, 1, 192)),
        ("6.1", Version(6, 1)),
        (" 7.2.22 (Debian 1:7.2+dfsg-7)", Version(7, 2, 22)),
        ("11.1.3", Version(11, 1, 3)),
    ],
)
def test_version_is_what_a_text_begins_with(text: str, version: Version) -> None:
    assert Version.parse(text) == version


@pytest.mark.parametrize("text", ["", "6", "six.one", "v6.1", "6.1.2.3", "99999.1"])
def test_no_version(text: str) -> None:
    with pytest.raises(PolicyError, match=r"no version"):
        Version.parse(text)


def test_version_shows_what_is_known_of_it() -> None:
    assert [str(Version(6, 1, 0)), str(Version(6, 1))] == ["6.1.0", "6.1"]


@pytest.mark.parametrize(
    ("release", "proc_version", "version"),
    [
        (
            "6.1.0-56-cloud-amd64",
            DEBIAN.format("6.1.0-56-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)"),
            Version(6, 1, 192),
        ),
        (
            "7.3.4+deb13-cloud-amd64",
            DEBIAN.format("7.3.4+deb13-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1~bpo13+1 (2026-11-15)"),
            Version(7, 3, 4),
        ),
        ("6.1.0-56-cloud-amd64", "", Version(6, 1)),
        ("6.12.117+deb13-cloud-amd64", "", Version(6, 12, 117)),
        ("7.3.0", "Linux version 7.3.0 (root@build) #3 SMP", Version(7, 3, 0)),
        ("7.3.0-rc4", "", Version(7, 3, 0)),
        ("5.14.0-570.el9.x86_64", "", None),
        ("6.8.0-51-generic", "", None),
        ("6.8.12-4-pve", "", None),
        ("nonsense", "", None),
    ],
)
def test_version_of_a_running_kernel(release: str, proc_version: str, version: Version | None) -> None:
    assert kernel_version(release, proc_version) == version


NEW_AND_CARRIED_BACK = "6.19- 7.1+ 6.1.170- 6.1.190+"


@pytest.mark.parametrize(
    ("points", "version", "has_it"),
    [
        ("5.8+", "5.4", True),
        ("5.11- 5.13+", "5.10", False),
        ("5.11- 5.13+", "5.12", None),
        ("5.11- 5.13+", "5.13", True),
        ("5.11- 5.13+", "7.3.4", True),
        ("5.8+ 6.19+ 7.1-", "6.12.117", True),
        ("5.8+ 6.19+ 7.1-", "7.0", None),
        ("5.8+ 6.19+ 7.1-", "7.3.4", False),
        ("5.10+ 5.11-", "6.12.117", False),
        (NEW_AND_CARRIED_BACK, "6.1.10", False),
        (NEW_AND_CARRIED_BACK, "6.1.170", False),
        (NEW_AND_CARRIED_BACK, "6.1.180", None),
        (NEW_AND_CARRIED_BACK, "6.1.190", True),
        (NEW_AND_CARRIED_BACK, "6.1.200", True),
        (NEW_AND_CARRIED_BACK, "6.1", None),
        # Carried back to one branch, it may have been to another.
        (NEW_AND_CARRIED_BACK, "6.6.50", None),
        (NEW_AND_CARRIED_BACK, "7.1.0", True),
        # Seen to be absent from the newest level only: a newer one may have it.
        ("6.12- 7.2+ 6.1.192-", "6.1.192", False),
        ("6.12- 7.2+ 6.1.192-", "6.1.193", None),
        # Present in mainline of that branch already.
        ("5.15- 6.12+ 6.1.170+", "6.1.50", None),
        ("5.15- 6.12+ 6.12.94+", "6.12.8", True),
    ],
)
def test_releases_say_what_was_looked_up(points: str, version: str, has_it: bool | None) -> None:
    assert Releases(points).have_it(Version.parse(version)) is has_it


def test_releases_know_nothing_of_no_version() -> None:
    assert Releases("5.8+").have_it(None) is None
