# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream of each host, converted to annex, loads on every host, and each L2 in it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmpfilter.cli.main import EXIT_FINE, main
from qmpfilter.svm import vmcb
from qmpfilter.svm.annex import ANNEX_OFFSET, MAGIC
from qmpfilter.svm.legacy import LegacyState
from qmpfilter.svm.vmcb import SAVE_OFFSET
from tests.helpers.fixtures import Fixture, fixtures
from tests.helpers.vcpus import vcpus_in_l2
from tests.lab.arriving import arrive
from tests.lab.emulator import EmulatedHost, JobFailed
from tests.lab.guest.build import build_guest
from tests.lab.hosts import HOSTS

pytestmark = pytest.mark.lab

SECONDS = 240.0
# Of a machine type that every host has: an L2 with shadow paging on one vCPU, one with nested paging on the other.
SOURCES = [fixture for fixture in fixtures() if fixture.name.endswith("-common-type")]
VCPUS = "2n"
# What KVM does not load from L1's save area; a page that was loaded has 0 there, or the new host's own.
NOT_KEPT = set(vmcb.registers(vmcb.RegisterClass.L2_ONLY))


def test_every_host_has_a_stream() -> None:
    assert {fixture.facts["host"] for fixture in SOURCES} == set(HOSTS)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_annex_loads_and_every_l2_goes_on(source: Fixture, emulated_host: EmulatedHost, tmp_path: Path) -> None:
    original = source.file("stream")
    annexed = _converted(original, "annex", tmp_path)
    assert [_page(state)[ANNEX_OFFSET:].startswith(MAGIC) for state in _states(annexed)] == [True] * len(VCPUS)

    progress, again = arrive(emulated_host, source, annexed)

    rounds = {index: progress["rounds"][str(index)] for index in range(len(VCPUS))}
    assert all(len(printed) >= 3 and printed == sorted(set(printed)) for printed in rounds.values()), rounds
    assert all(progress["exits"][str(index)] for index in range(len(VCPUS))), progress
    for before, after in zip(_states(original), _states(again), strict=True):
        assert (after.flags, after.size, after.vmcb_pa) == (before.flags, before.size, before.vmcb_pa)
        assert not any(_page(after)[SAVE_OFFSET + vmcb.SAVE.size :])
        assert _control(after, intercepts_of=before) == before.control
        assert _differing(before, after) <= NOT_KEPT
    assert _converted(annexed, "legacy", tmp_path) == original


def test_native_state_is_none_of_a_stock_host(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    natively = _converted(SOURCES[0].file("stream"), "native", tmp_path)
    with pytest.raises(JobFailed, match=r"(?s)QEMU: .*nested_state"):
        arrive(emulated_host, SOURCES[0], natively)


def _converted(stream: bytes, target: str, directory: Path) -> bytes:
    """What the command makes of a stream."""
    (directory / "in").write_bytes(stream)
    assert main(["convert", str(directory / "in"), str(directory / "out"), "--to", target]) == EXIT_FINE
    return (directory / "out").read_bytes()


def _states(stream: bytes) -> list[LegacyState]:
    return [vcpu.nested for vcpu in vcpus_in_l2(stream) if vcpu.nested is not None]


def _page(state: LegacyState) -> bytes:
    assert state.page is not None
    return state.page


def _control(state: LegacyState, intercepts_of: LegacyState) -> bytes:
    """The control area with another's intercepts: from 7.1 on KVM clears those of features that the guest lacks."""
    control = bytearray(state.control)
    for name in vmcb.INTERCEPT_WORDS:
        word, sent = (vmcb.CONTROL.get(area, name) for area in (control, intercepts_of.control))
        assert not word & ~sent, name
        vmcb.CONTROL.put(control, name, sent)
    return bytes(control)


def _differing(before: LegacyState, after: LegacyState) -> set[str]:
    """The fields in which two save areas of L1 differ."""
    return {name for name in vmcb.SAVE.fields if vmcb.SAVE.get(before.save, name) != vmcb.SAVE.get(after.save, name)}


# What each host restores: libvirt 11.3 gives QEMU 11.1 a raw image as a file, which that refuses.
IMAGES = {
    "old": ("old-save-raw",),
    "mid": ("mid-save-raw", "mid-save-gzip", "mid-save-zstd"),
    "new": ("mid-save-gzip", "mid-save-zstd"),
}


def test_libvirt_restores_converted_images(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    saved = {fixture.name: fixture for fixture in fixtures(role="save")}
    spec, files = {}, {"l1.elf": build_guest().elf}
    for name in IMAGES[emulated_host.host.name]:
        symbols = saved[name].truth()["guest"]["symbols"]
        spec[name] = {"vcpus": "2", "contexts": int(symbols["contexts"], 16)}
        files[name] = _converted(saved[name].file("save"), "annex", tmp_path)
    files["spec.json"] = json.dumps(spec).encode()
    left = emulated_host.run(["python3", "-m", "inhost.restore", "spec.json"], files, SECONDS).files
    rounds = json.loads(left["rounds.json"])
    assert rounds.keys() == set(IMAGES[emulated_host.host.name])
    assert all(len(printed["0"]) >= 3 for printed in rounds.values()), rounds
