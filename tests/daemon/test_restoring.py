# SPDX-License-Identifier: GPL-2.0-or-later
"""Save images that a libvirt has open, in a /proc that is made up."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from qmpfilter.cli.main import main
from qmpfilter.daemon import restoring
from qmpfilter.daemon.restoring import check_image
from qmpfilter.errors import HostError, PolicyError, RefusedError
from qmpfilter.filter.policy import Enforcement, Mode, Policy
from qmpfilter.filter.rewriter import Rewriter
from qmpfilter.saveimage.source import open_source
from qmpfilter.verdict.facts import HostFacts
from tests.helpers.fixtures import fixtures

IMAGE = next(fixture for fixture in fixtures(role="save") if fixture.name == "mid-save-raw")
WITHOUT_NESTING = HostFacts(parameters={"kvm_amd": {"nested": "0"}})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "guest.save"
    path.write_bytes(IMAGE.file("save"))
    return path


def proc(directory: Path, *images: Path, comm: str = "libvirtd") -> Path:
    process = directory / "proc/42"
    (process / "fd").mkdir(parents=True)
    (process / "comm").write_text(f"{comm}\n")
    (process / "fd/0").symlink_to("/dev/null")
    for number, image in enumerate(images, 9):
        (process / f"fd/{number}").symlink_to(image)
    return process.parent


def uuid_of(image: Path) -> str:
    with open_source(str(image)) as source:
        assert source.domain is not None
        return str(source.domain.uuid)


def test_an_image_that_this_host_takes(tmp_path: Path, image: Path) -> None:
    check_image(uuid_of(image), Policy(), proc(tmp_path, image))


def test_one_that_it_does_not(tmp_path: Path, image: Path) -> None:
    with pytest.raises(PolicyError, match="would not run this guest"):
        check_image(uuid_of(image), Policy(facts=WITHOUT_NESTING), proc(tmp_path, image))


def test_native_state_is_refused_with_what_to_do(tmp_path: Path, image: Path) -> None:
    native = tmp_path / "native.save"
    assert main(["convert", str(image), str(native), "--to", "native"]) == 0
    with pytest.raises(PolicyError, match=f"qmpfilter convert {native} NEW --to annex"):
        check_image(uuid_of(image), Policy(), proc(tmp_path, native))


def test_with_mode_off_nothing_is_read(tmp_path: Path, image: Path) -> None:
    policy = Policy(mode=Mode.OFF, facts=WITHOUT_NESTING)
    check_image(uuid_of(image), policy, proc(tmp_path, image))
    check_image("another", policy, tmp_path / "nowhere")


def test_observed_native_state_is_restored_as_it_would_pass(tmp_path: Path, image: Path) -> None:
    native = tmp_path / "native.save"
    assert main(["convert", str(image), str(native), "--to", "native"]) == 0
    policy = Policy(mode=Mode.OBSERVE, enforcement=Enforcement.WARN)
    check_image(uuid_of(image), policy, proc(tmp_path, native))


CONTRADICTORY = RefusedError(0, "a guest mode", [("reason", "It has none.")])


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.ANNEX, Mode.LEGACY])
def test_state_that_no_conversion_touches_is_refused_unless_it_is_observed(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    def refuse(*_: object) -> None:
        raise CONTRADICTORY

    monkeypatch.setattr(Rewriter, "take", refuse)
    refused = pytest.raises(PolicyError, match="It has none") if mode is not Mode.OBSERVE else nullcontext()
    with refused:
        check_image(uuid_of(image), Policy(mode=mode), proc(tmp_path, image))


def test_observed_state_is_judged_as_on_its_way(tmp_path: Path, image: Path) -> None:
    with pytest.raises(PolicyError, match="would not run this guest"):
        check_image(uuid_of(image), Policy(mode=Mode.OBSERVE, facts=WITHOUT_NESTING), proc(tmp_path, image))


@pytest.mark.parametrize(("comm", "uuid"), [("cat", None), ("virtqemud", "another")])
def test_one_that_is_not_found_is_said(tmp_path: Path, image: Path, comm: str, uuid: str | None) -> None:
    with pytest.raises(HostError, match="was not found open"):
        check_image(uuid or uuid_of(image), Policy(), proc(tmp_path, image, comm=comm))


def test_a_damaged_one_is_left_to_libvirt(tmp_path: Path, image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-1000])
    with pytest.raises(HostError, match="cannot be read"):
        check_image(uuid_of(image), Policy(), proc(tmp_path, image))


def both_orders(monkeypatch: pytest.MonkeyPatch, turned: bool) -> None:
    """A directory is listed in whatever order."""
    listed = restoring._open_images
    monkeypatch.setattr(restoring, "_open_images", lambda proc: iter(sorted(listed(proc), reverse=turned)))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("call", ["_target", "open_source"])
def test_a_descriptor_that_closes_meanwhile_is_passed_over(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, call: str, turned: bool
) -> None:
    both_orders(monkeypatch, turned)
    uuid, other = uuid_of(image), tmp_path / "other.save"
    other.write_bytes(image.read_bytes())
    libvirts = proc(tmp_path, other, image)
    real = getattr(restoring, call)

    def closing(path: str | Path) -> object:
        Path(libvirts / "42/fd/9").unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(restoring, call, closing)
    check_image(uuid, Policy(), libvirts)
    (libvirts / "42/fd/10").unlink()
    with pytest.raises(HostError, match="was not found open"):
        check_image(uuid, Policy(), libvirts)


@pytest.mark.parametrize("turned", [False, True])
def test_damage_in_the_head_of_another_hides_none(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, turned: bool
) -> None:
    both_orders(monkeypatch, turned)
    uuid, other = uuid_of(image), tmp_path / "other.save"
    other.write_bytes(image.read_bytes()[:200])
    libvirts = proc(tmp_path, other, image)
    check_image(uuid, Policy(), libvirts)
    (libvirts / "42/fd/10").unlink()
    with pytest.raises(HostError, match=r"other\.save cannot be read"):
        check_image(uuid, Policy(), libvirts)
