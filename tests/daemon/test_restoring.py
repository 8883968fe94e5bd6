# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that a libvirt has open, in a /proc that is made up."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from qmpfilter.daemon.restoring import check_image
from qmpfilter.errors import HostError, PolicyError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.policy import Enforcement, Policy
from qmpfilter.saveimage.header import SaveFormat
from tests.helpers.convert import converted
from tests.helpers.migration import STREAM
from tests.saveimage.images import UUID, image

OTHER = str(uuid.UUID(int=1))


WARN = Policy(enforcement=Enforcement.WARN)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A libvirt with descriptors that are no images, and one that was closed since it was listed."""
    for pid, name in ((5, "bash"), (7, "libvirtd")):
        (tmp_path / f"proc/{pid}/fd").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/comm").write_text(f"{name}\n")
    descriptors = tmp_path / "proc/7/fd"
    (tmp_path / "log").write_text("a log")
    (descriptors / "0").symlink_to("/dev/null")
    (descriptors / "1").symlink_to("socket:[5]")
    (descriptors / "2").symlink_to(tmp_path / "log")
    (descriptors / "3").symlink_to(tmp_path)
    return tmp_path / "proc"


def opened(proc: Path, data: bytes, number: int = 9, pid: int = 7) -> Path:
    path = proc.parent / f"image{number}"
    path.write_bytes(data)
    (proc / f"{pid}/fd/{number}").symlink_to(path)
    return path


def test_an_image_with_nothing_against_it_passes(proc: Path) -> None:
    opened(proc, image(STREAM), 9)
    check_image(UUID, Policy(), proc)


@pytest.mark.parametrize("policy", [Policy(), WARN], ids=["enforced", "warned"])
def test_a_native_image_is_refused_with_the_command_that_helps(proc: Path, policy: Policy) -> None:
    path = opened(proc, image(converted(STREAM, Carrier.NATIVE)))
    with pytest.raises(PolicyError, match=f"'qmpfilter convert {path} NEW --to annex'"):
        check_image(UUID, policy, proc)


def test_the_image_of_another_domain_is_not_looked_at(proc: Path) -> None:
    opened(proc, image(converted(STREAM, Carrier.NATIVE)))
    with pytest.raises(HostError, match="was not found open"):
        check_image(OTHER, Policy(), proc)


def test_only_libvirts_are_looked_into(proc: Path) -> None:
    opened(proc, image(STREAM), pid=5)
    with pytest.raises(HostError, match="was not found open"):
        check_image(UUID, Policy(), proc)


def test_a_damaged_image_is_said(proc: Path) -> None:
    opened(proc, image(b"rubbish", SaveFormat.GZIP))
    with pytest.raises(HostError, match="the image cannot be read, and libvirt may say why"):
        check_image(UUID, Policy(), proc)
