# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt tells: of jobs, of events, of who has the guest, and of what a domain asks for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from qmpfilter.errors import PolicyError
from qmpfilter.filter.policy import LOST_ANYWAY, Enforcement, Mode, Policy
from qmpfilter.libvirt import events, job
from qmpfilter.libvirt.connection import State
from qmpfilter.libvirt.metadata import NAMESPACE, DomainPolicy
from qmpfilter.libvirt.outlook import outlook, svm_use
from qmpfilter.libvirt.whereabouts import whereabouts
from qmpfilter.qmp.whereabouts import Whereabouts
from qmpfilter.verdict.facts import HostFacts, QemuBinary
from qmpfilter.verdict.version import Version

RUNS, OFF, ABSENT = State("running", 1), State("shut off", 1), State("absent")
STOPPED, LEAVING = State("paused", 1), State("paused", 2)


@pytest.mark.parametrize(
    ("source", "destination", "where"),
    [
        (RUNS, ABSENT, Whereabouts.SOURCE),
        (RUNS, OFF, Whereabouts.SOURCE),
        (RUNS, LEAVING, Whereabouts.SOURCE),
        (STOPPED, ABSENT, Whereabouts.SOURCE),
        (LEAVING, ABSENT, Whereabouts.SOURCE),
        (ABSENT, RUNS, Whereabouts.DESTINATION),
        (OFF, STOPPED, Whereabouts.DESTINATION),
        (LEAVING, RUNS, Whereabouts.DESTINATION),
        (RUNS, RUNS, Whereabouts.BOTH),
        (ABSENT, ABSENT, Whereabouts.NEITHER),
        (OFF, OFF, Whereabouts.NEITHER),
        (LEAVING, LEAVING, Whereabouts.UNKNOWN),
        (ABSENT, LEAVING, Whereabouts.UNKNOWN),
        (RUNS, STOPPED, Whereabouts.UNKNOWN),
        (None, RUNS, Whereabouts.UNKNOWN),
        (RUNS, None, Whereabouts.UNKNOWN),
    ],
)
def test_who_has_the_guest(source: State | None, destination: State | None, where: Whereabouts) -> None:
    assert whereabouts(source, destination) is where


def test_a_job_as_progress() -> None:
    info = job.progress(
        {"memory_total": 100, "memory_remaining": 40, "memory_dirty_rate": 2, "memory_bps": 9}, "word"
    )
    assert (info.status, info.total, info.remaining, info.dirty_rate, info.rate) == ("word", 100, 40, 8192, 9)
    assert job.progress({}, "word").total == 0


@pytest.mark.parametrize(
    ("event", "detail", "what"),
    [
        (2, 1, "started (migrated)"),
        (3, 1, "suspended (migrated)"),
        (4, 1, "resumed (migrated)"),
        (5, 3, "stopped (migrated)"),
        (1, 0, "undefined (removed)"),
        (5, 99, "stopped (99)"),
        (99, 1, "event 99 (1)"),
    ],
)
def test_lifecycle(event: int, detail: int, what: str) -> None:
    assert str(events.lifecycle("a", "u", event, detail)) == f"domain a (u): {what}"


def test_qemus_own_event_has_qemus_time() -> None:
    happening = events.qemu_migration("a", "u", 1_700_000_000, 250_000, '{"status":"pre-switchover"}')
    assert happening.what == "QEMU's migration: pre-switchover"
    assert happening.at == datetime.fromtimestamp(1_700_000_000.25, UTC)
    for details in (None, "{", "[]", "{}"):
        assert events.qemu_migration("a", "u", 0, 0, details).what == "QEMU's migration: unknown"


def test_a_job_that_ended() -> None:
    happening = events.job_completed("a", "u", {"operation": 4, "time_elapsed": 872, "downtime": 31})
    assert (happening.what, happening.ends_job) == ("job completed in 872 ms, guest stopped for 31 ms", True)
    assert happening.job == {"time_elapsed": 872, "downtime": 31}
    assert events.job_completed("a", "u", {"success": False}).what == "job failed"
    assert events.job_completed("a", "u", {}).ends_job
    assert not events.iteration("a", "u", 1).ends_job


@pytest.mark.parametrize(
    ("policy", "attributes"),
    [
        (DomainPolicy(Mode.OBSERVE), ' mode="observe"'),
        (DomainPolicy(None, Enforcement.WARN, frozenset({"b", "a"})), ' verdict="warn" accept="a b"'),
    ],
)
def test_a_domains_policy_there_and_back(policy: DomainPolicy, attributes: str) -> None:
    assert policy.to_xml() == f"<policy{attributes} />"
    assert DomainPolicy.from_xml(policy.to_xml()) == policy
    assert DomainPolicy.from_xml(f'<q:policy xmlns:q="{NAMESPACE}"{attributes}/>') == policy


@pytest.mark.parametrize(
    "text",
    ["", "<policy", "<other/>", '<policy mode="mad"/>', '<policy new="1"/>', '<p:policy xmlns:p="urn:other"/>'],
)
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(PolicyError, match="the policy in the domain's metadata cannot be understood"):
        DomainPolicy.from_xml(text)


def test_whose_word_holds() -> None:
    asked = DomainPolicy(Mode.OBSERVE, Enforcement.WARN, frozenset({"x"}))
    whole = asked.applied(Policy())
    assert (whole.mode, whole.enforcement, whole.accepted) == (Mode.OBSERVE, Enforcement.WARN, LOST_ANYWAY | {"x"})
    assert asked.applied(Policy(mode=Mode.LEGACY), {"mode"}).mode is Mode.LEGACY
    assert DomainPolicy().applied(Policy()) == Policy()
    with pytest.raises(PolicyError, match="announce"):
        DomainPolicy(Mode.NATIVE).applied(Policy())


def test_what_is_known_before_the_stream() -> None:
    assert "known of the destination: nothing, for want of --host" in list(outlook(Policy()))
    facts = HostFacts(
        kernel=Version.parse("6.1.192"),
        parameters={"kvm_amd": {"nested": "0"}},
        qemu=(QemuBinary("/q", Version.parse("7.2.22")),),
    )
    said = list(outlook(Policy(facts=facts)))
    assert "known of the destination: kernel 6.1.192, QEMU 7.2.22, nested=0" in said
    assert "not known of it: npt, CPUID" in said
    assert "kvm_amd there has nested=0: a vCPU that has nested state will be refused" in said
    assert "its QEMU passes over what its kernel refuses, and would run a broken guest" in said
    assert said[-1].startswith("not known before the stream")
    assert list(outlook(Policy(enforcement=Enforcement.OFF)))[-1] == "no verdict will be made"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "QEMU does not say"),
        ("EFER=0000000000000d01", "none of the 1 vCPUs uses SVM"),
        ("EFER=0000000000001d01 x\nEFER=0000000000000d01\nEFER=0000000000001d01", "on vCPU 0, 2 of 3"),
    ],
)
def test_who_uses_svm(text: str, said: str) -> None:
    assert said in svm_use(text)
