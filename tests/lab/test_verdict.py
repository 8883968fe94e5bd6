# SPDX-License-Identifier: GPL-2.0-or-later
"""What the verdict says of a state is what the host's KVM does with it, for thousands of states on each kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qmpfilter.verdict.checks import CHECKS
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.losses import LOSSES
from qmpfilter.verdict.rule import Stage
from tests.lab.differential import SEEN_LOSSES, Comparison, ask, compare, drafts, host_facts
from tests.lab.draft import Draft
from tests.lab.emulator import EmulatedHost

pytestmark = pytest.mark.lab

SEED = 20261123
SECONDS = 60.0
#: As kvm_amd is loaded by the host's init, and then without the host's own nested paging, and without nesting.
NORMAL = "nested=1"
PARAMETERS = (NORMAL, "nested=1 npt=0", "nested=0")


#: Checks that a kernel has but cannot reach: KVM_SET_SREGS refuses first, since somewhere between 5.15 and 6.12.
SHADOWED = {("l2-cr0-nw", Stage.NESTED_STATE)}


@pytest.fixture(scope="module")
def states() -> list[Draft]:
    """The same for every kernel."""
    return list(drafts(SEED))


@pytest.fixture(scope="module")
def comparisons(emulated_host: EmulatedHost, states: list[Draft]) -> dict[str, tuple[HostFacts, Comparison]]:
    """One for each set of parameters."""
    found = {}
    for parameters in PARAMETERS:
        with _loaded(emulated_host, parameters):
            facts = host_facts(emulated_host)
            found[parameters] = facts, compare(facts, states, ask(emulated_host, facts, states))
    return found


@contextmanager
def _loaded(host: EmulatedHost, parameters: str) -> Iterator[None]:
    """kvm_amd with parameters; afterwards as other tests expect it."""
    if parameters == NORMAL:
        yield
        return
    try:
        _load(host, parameters)
        yield
    finally:
        _load(host, NORMAL)


def _load(host: EmulatedHost, parameters: str) -> None:
    host.run(["sh", "-c", f"modprobe -r kvm_amd && modprobe kvm_amd {parameters}"], {}, SECONDS)


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_kvm_does_what_the_verdict_says(
    comparisons: dict[str, tuple[HostFacts, Comparison]], parameters: str, states: list[Draft]
) -> None:
    _, comparison = comparisons[parameters]
    assert comparison.states == len(states) >= 3000
    assert not comparison.disagreements, "\n".join(comparison.disagreements[:20])


def test_every_rule_of_this_kernel_was_hit_from_both_sides(
    comparisons: dict[str, tuple[HostFacts, Comparison]],
) -> None:
    broken: Counter[tuple[str, Stage]] = Counter()
    kept: Counter[tuple[str, Stage]] = Counter()
    for _, comparison in comparisons.values():
        broken += comparison.broken
        kept += comparison.kept
    facts = comparisons[NORMAL][0]
    checks = [rule for rule in CHECKS if rule.stage is not Stage.LOAD]  # which is QEMU's own
    seen = [rule for rule in LOSSES if rule.code in SEEN_LOSSES]
    here = {(rule.code, rule.stage) for rule in (*checks, *seen) if rule.kernels.have_it(facts.kernel)}
    assert here - kept.keys() == set()
    assert here - broken.keys() == SHADOWED & here
