# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions of kernels and of QEMU, and the ranges of them in which something holds.

A check comes with a mainline release and is then carried back to some of the older stable branches. A range
therefore is a list of releases that were looked at; where they do not decide, the answer is "not known".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from qmpfilter.errors import PolicyError

__all__ = ["Releases", "Version", "kernel_version"]

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,5}))?(?![\d.])")
# Debian, after the compiler: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.174-1 (2026-06-02)".
_DEBIAN = re.compile(r"#\d+ .*\bDebian (\d+\.\d+(?:\.\d+)?)[-~+]")
# Debian's own release names up to Linux 6.1: "6.1.0-56-cloud-amd64" is some level of 6.1.
_ABI_NUMBER = re.compile(r"\d+\.\d+\.0-\d+-")
# Kernels whose branch number tells nothing: their vendor carries KVM of much newer kernels back to them.
_OF_ITS_OWN = re.compile(
    r"\.el\d|\.fc\d|\.amzn\d|\.uek|-default\b|-generic\b|-azure\b|-aws\b|-gcp\b|-oracle\b|-pve\b|\.x86_64\b"
)


@dataclass(frozen=True, slots=True)
class Version:
    """``6.1.192`` or, where the third number is not known, ``6.1``.

    A mainline release is ``7.1.0``; ``7.1`` means some level of that branch.
    """

    major: int
    minor: int
    micro: int | None = None

    @classmethod
    def parse(cls, text: str) -> Version:
        """The version that a text begins with: ``7.2.22 (Debian 1:7.2+dfsg-7)`` is 7.2.22.

        :raises PolicyError: it begins with none
        """
        match = _VERSION.match(text.strip())
        if match is None:
            raise PolicyError(f"{text!r} is no version: expected two or three numbers, as in 6.1.192")
        major, minor, micro = match.groups()
        return cls(int(major), int(minor), None if micro is None else int(micro))

    @property
    def branch(self) -> tuple[int, int]:
        """The first two numbers."""
        return self.major, self.minor

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" + ("" if self.micro is None else f".{self.micro}")


def kernel_version(release: str, proc_version: str = "") -> Version | None:
    """The upstream version of a running kernel, as far as two texts tell it.

    :param release: ``uname -r``; Debian's (6.1.0-56-cloud-amd64) has the branch but not the stable level
    :param proc_version: /proc/version, in which Debian names its package
    :returns: None for a kernel whose vendor carries KVM back from newer ones: its number tells nothing
    """
    debian = _DEBIAN.search(proc_version)
    if debian is not None:
        return Version.parse(debian[1])
    match = _VERSION.match(release)
    if match is None or _OF_ITS_OWN.search(release):
        return None
    found = Version.parse(release)
    return Version(*found.branch) if _ABI_NUMBER.match(release) else found


class Releases:
    """Releases that have something, as far as it was looked up.

    :param points: what was seen, as ``"5.15- 6.12+ 6.1.170- 6.1.190+"``: mainline 5.15 lacks it, 6.12 has it;
        of the stable branch 6.1, level 170 lacks it and 190 has it. Between two mainline releases that agree it
        is as they say; before the first it is as the first, after the last as the last.
    """

    def __init__(self, points: str) -> None:
        mainline: dict[tuple[int, int], bool] = {}
        self._stable: dict[tuple[int, int], list[tuple[int, bool]]] = {}
        for point in points.split():
            version, has_it = Version.parse(point[:-1]), point[-1] == "+"
            if version.micro is None:
                mainline[version.branch] = has_it
            else:
                self._stable.setdefault(version.branch, []).append((version.micro, has_it))
        self._mainline: Final = sorted(mainline.items())
        self._text: Final = points

    def __repr__(self) -> str:
        return f"Releases({self._text!r})"

    def have_it(self, version: Version | None) -> bool | None:
        """Whether a release has it; None if that is not known."""
        if version is None:
            return None
        mainline = self._in_mainline(version.branch)
        seen = self._stable.get(version.branch)
        if seen is None:
            return None if mainline is False and self._carried_back(version.branch) else mainline
        if version.micro is None:
            return None if not all(has is mainline for _, has in seen) else mainline
        without = max((micro for micro, has in seen if not has), default=None)
        with_it = min((micro for micro, has in seen if has), default=None)
        if with_it is not None and version.micro >= with_it:
            return True
        if without is not None:
            return False if version.micro <= without else None
        return mainline or None

    def _carried_back(self, branch: tuple[int, int]) -> bool:
        """It came later than this branch, and some other stable branch got it afterwards."""
        came_later = any(has for at, has in self._mainline if at > branch)
        return came_later and any(has for row in self._stable.values() for _, has in row)

    def _in_mainline(self, branch: tuple[int, int]) -> bool | None:
        before = [has for at, has in self._mainline if at <= branch]
        after = [has for at, has in self._mainline if at >= branch]
        ends = {*before[-1:], *after[:1]}
        return ends.pop() if len(ends) == 1 else None
