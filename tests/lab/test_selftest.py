# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter selftest` on every kernel, with and without nested paging, and where it cannot run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.selftest.case import Mode
from qmpfilter.selftest.cases import cases
from tests.lab import wrong
from tests.lab.emulator import EmulatedHost, JobFailed
from tests.lab.hosts import MID, emulator, host_image
from tests.lab.package import run_packaged, run_python

pytestmark = pytest.mark.lab

SECONDS = 400.0
FEWEST = {1: 87, 0: 66}  # cases, by npt
# Of vmcb12_save, what no stream of a stock QEMU can be exact about.
NEVER_EXACT = {
    "dr7", "g_pat", "dbgctl", "br_from", "br_to", "last_excp_from", "last_excp_to", "s_cet", "ssp", "isst_addr",
    "spec_ctrl",
}  # fmt: skip


@contextmanager
def reloaded(host: EmulatedHost, **parameters: int) -> Iterator[None]:
    """kvm_amd with other parameters."""

    def load(**given: int) -> None:
        words = [f"{name}={value}" for name, value in given.items()]
        host.run(["sh", "-c", f"modprobe -r kvm_amd && modprobe kvm_amd {' '.join(words)}"], {}, 60.0)

    load(**parameters)
    try:
        yield
    finally:
        load()


def results(host: EmulatedHost) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(run_packaged(host, SECONDS, "selftest", "--json").output)
    return told


@pytest.mark.parametrize("npt", [1, 0])
def test_every_case_passes(emulated_host: EmulatedHost, npt: int) -> None:
    if npt:
        told = results(emulated_host)
    else:
        with reloaded(emulated_host, npt=0):
            told = results(emulated_host)
    assert {item["case"]: item["failures"] for item in told if not item["passed"]} == {}
    assert [item["case"] for item in told] == [case.name for case in cases(nested_paging=bool(npt), vgif=True)]
    assert len(told) >= FEWEST[npt]
    assert {item["mode"] for item in told} == {mode.value for mode in Mode}
    exempt = {name for item in told for name in item["exempt"] if "attributes" not in name}
    assert exempt == NEVER_EXACT
    assert any(item["exempt"].get("dr7") for item in told), "no L2 had a DR7 that its registers do not tell"


def test_vmcb12_from_memory_settles_dr7(emulated_host: EmulatedHost) -> None:
    told = json.loads(run_packaged(emulated_host, SECONDS, "selftest", "--json", "--filter", "DR7").output)
    assert told
    for item in told:
        assert item["passed"]
        assert item["exempt"]["dr7"]
        assert "dr7" not in item["exempt_with_memory"]


def test_no_wrong_register_goes_unnoticed() -> None:
    files = {"wrong.py": Path(wrong.__file__).read_bytes()}
    with EmulatedHost(host_image(MID), emulator()) as host:
        told = json.loads(run_python(host, ["wrong.py"], files, SECONDS).output)
    assert len(told) == len(list(wrong.changes()))
    # A machine that went on from it tells, not only the comparison of states.
    how = "rebuilt from vmcb12_save alone"
    assert [name for name, said in told.items() if not any(text.startswith(how) for text in said)] == []


def test_without_nesting_it_says_what_to_do(emulated_host: EmulatedHost) -> None:
    with reloaded(emulated_host, nested=0), pytest.raises(JobFailed, match="was loaded with nested=0"):
        run_packaged(emulated_host, SECONDS, "selftest")


def test_without_kvm_it_says_what_to_do(emulated_host: EmulatedHost) -> None:
    emulated_host.run(["mv", "/dev/kvm", "/dev/kvm.away"], {}, 60.0)
    try:
        with pytest.raises(JobFailed, match="load kvm_amd"):
            run_packaged(emulated_host, SECONDS, "selftest")
    finally:
        emulated_host.run(["mv", "/dev/kvm.away", "/dev/kvm"], {}, 60.0)


def test_it_leaves_nothing_behind(emulated_host: EmulatedHost) -> None:
    run_packaged(emulated_host, SECONDS, "selftest", "--filter", "64-bit at CPL 3")
    users = emulated_host.run(["cat", "/sys/module/kvm_amd/refcnt"], {}, 60.0).output
    assert users.strip() == "0"
