# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``qmpfilter doctor`` says on real kernels with a real kvm_amd, beside real QEMUs."""

from __future__ import annotations

import pytest

from qmpfilter.svm.legacy import SIZE_L2
from qmpfilter.verdict.facts import HostFacts
from tests.lab.emulator import EmulatedHost
from tests.lab.hosts import HOSTS, host_image
from tests.lab.package import PLACE, installed

pytestmark = pytest.mark.lab

SECONDS = 120.0
MAXPHYADDR = 40  # of the emulated EPYC: TCG's phys-bits

#: What each kernel and QEMU is known to lack, by the title's words; the emulated processor has no say in it.
WARNED = {
    "old": {"LBR", "PDPTRs", "heeding a kernel's refusal", "error code"},
    "mid": {"PDPTRs", "error code"},
    "new": set(),
}

DOCTOR = f"PYTHONPATH={PLACE} python3 -m qmpfilter doctor"
RELOAD = "modprobe -r kvm_amd && modprobe kvm_amd nested={}"


def _doctor(
    host: EmulatedHost, *, options: str = "", before: str = "true", after: str = "true"
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    script = f"set -e; {before}; set +e; {DOCTOR} {options} >out/text 2>out/error; echo $? >out/status; {after}"
    installed(host)
    files = host.run(["sh", "-c", script], {}, SECONDS).files
    return int(files["status"]), files["text"].decode(), files["error"].decode()


def test_facts_are_those_of_the_host(emulated_host: EmulatedHost) -> None:
    status, text, error = _doctor(emulated_host, options="--json")
    assert (status, error) == (0, "")
    facts = HostFacts.from_json(text)
    image = host_image(HOSTS[emulated_host.host.name])

    assert facts.kernel_release == emulated_host.kernel == image.versions["kernel"]
    assert str(facts.kernel).startswith(emulated_host.host.kernel)
    assert facts.kernel_package is not None
    assert facts.kernel_package.startswith(f"{facts.kernel}-")
    assert [binary.path for binary in facts.qemu] == ["/usr/bin/qemu-system-x86_64"]
    assert str(facts.qemu_version).startswith(emulated_host.host.qemu)
    assert (facts.nested, facts.npt) == (True, True)
    assert facts.nested_state_size == SIZE_L2
    assert facts.quirks
    assert facts.supported_cpuid is not None
    assert facts.supported_cpuid.maxphyaddr == MAXPHYADDR
    assert {name: facts.supported_cpuid.has(name) for name in ("SVM", "NPT", "NRIPS")} == {
        "SVM": True, "NPT": True, "NRIPS": False,
    }  # fmt: skip
    assert facts.formats == ("legacy", "annex")


def test_host_is_fit_and_its_weaknesses_are_named(emulated_host: EmulatedHost) -> None:
    status, text, error = _doctor(emulated_host)
    assert (status, error) == (0, ""), text
    assert " FAIL" not in text
    warned = [line for line in text.splitlines() if ": WARN (" in line]
    expected = WARNED[emulated_host.host.name]
    assert len(warned) == len(expected), text
    for words in expected:
        assert [line for line in warned if words in line], text


def test_nesting_turned_off_fails_and_says_how_to_turn_it_on(emulated_host: EmulatedHost) -> None:
    status, text, error = _doctor(emulated_host, before=RELOAD.format(0), after=RELOAD.format(1))
    assert status == 3
    failed = [line for line in text.splitlines() if ": FAIL (" in line]
    assert "lets guests nest" in failed[0]
    assert "modprobe kvm_amd nested=1" in failed[0]
    assert f"{len(failed)} checks failed" in error
    assert _doctor(emulated_host)[0] == 0
