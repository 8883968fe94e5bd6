# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter selftest` on every kernel, with and without nested paging, and where it cannot run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qmpfilter.selftest.cases import cases
from tests.lab.emulator import EmulatedHost, JobFailed
from tests.lab.package import run_packaged

pytestmark = pytest.mark.lab

SECONDS = 300.0
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
    exempt = {name for item in told for name in item["exempt"] if "attributes" not in name}
    assert exempt <= NEVER_EXACT


def test_without_nesting_it_says_what_to_do(emulated_host: EmulatedHost) -> None:
    with reloaded(emulated_host, nested=0), pytest.raises(JobFailed, match="parameter nested=1"):
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
