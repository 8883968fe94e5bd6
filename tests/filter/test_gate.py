# SPDX-License-Identifier: GPL-2.0-or-later
"""Real streams through a gate: what passes in each mode, when the commit point does, and what stops it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from random import Random
from unittest.mock import Mock

import pytest

from qmpfilter.errors import DeadlineError, PolicyError, QmpfilterError, RefusedError, StreamError, WithdrawnError
from qmpfilter.filter import rewriter as rewriter_module
from qmpfilter.filter.gate import Gate, Piece
from qmpfilter.filter.policy import Enforcement, Mode, Policy
from qmpfilter.filter.vcpu import decide
from qmpfilter.svm import annex
from qmpfilter.svm.annex import ANNEX_OFFSET, MAGIC
from qmpfilter.svm.provenance import Confidence
from qmpfilter.svm.section import CpuSection
from qmpfilter.svm.svm2 import Validity
from qmpfilter.svm.vmcb import CONTROL, SAVE
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.version import Version
from qmpfilter.wire import tail
from qmpfilter.wire.cpu import BLOCK
from qmpfilter.wire.events import (
    CommandReceived,
    DelimitedBy,
    DeviceSection,
    IterableEnd,
    MachineConfiguration,
    SectionsEnd,
    VmDescriptionReceived,
)
from qmpfilter.wire.framing import Command
from qmpfilter.wire.vmdesc import VmDescription
from qmpfilter.wire.withdrawal import withdrawal
from tests.helpers.fixtures import Fixture, fixtures
from tests.helpers.parse import parse, pieces
from tests.helpers.vcpus import vcpus_in_l2

LENIENT = Policy(without_return_path=True)
STREAMS = [fixture for fixture in fixtures() if fixture.facts["kind"] == "stream"]
L2 = next(fixture for fixture in STREAMS if fixture.name == "mid-l2").file("stream")

# One recording after the other, so that what several tests ask of it is done once.
each_stream = pytest.mark.parametrize("fixture", STREAMS, ids=str, scope="module")


def taken(gate: Gate, data: memoryview) -> Iterator[Piece]:
    """What a relay asks of a gate."""
    if gate.pass_pages(data):
        yield Piece(data)
    else:
        yield from gate.receive_data(data)


def passed(gate: Gate, stream: bytes, *, seed: int | None = None) -> tuple[bytes, int | None]:
    """All that came out, and where in it the first piece that may be the commit point began."""
    out = b""
    commit: int | None = None
    random = Random(seed)
    at = 0
    while at <= len(stream):
        size = len(stream) if seed is None else random.randrange(1, 50_000)
        pieces = taken(gate, memoryview(stream[at : at + size])) if at < len(stream) else gate.receive_eof()
        for data, may_commit in pieces:
            commit = len(out) if may_commit and commit is None else commit
            out += data
        if at == len(stream):
            break
        at = min(at + size, len(stream))
    return out, commit


def stopped(gate: Gate, stream: bytes, size: int | None = None) -> tuple[bytes, QmpfilterError | None]:
    """What came out of a gate before it stopped, all of it before the commit point, and why it stopped."""
    out = b""
    given = (taken(gate, memoryview(piece)) for piece in pieces(stream, size))
    try:
        for piece in chain(chain.from_iterable(given), gate.receive_eof()):
            assert not piece.commit
            out += piece.data
    except QmpfilterError as error:
        return out, error
    return out, None


def commit_point(stream: bytes) -> int:
    """Where the first byte stands with which the destination may start the guest."""
    for event in parse(stream).events:
        packaged = isinstance(event, CommandReceived) and event.command is Command.PACKAGED
        if packaged or isinstance(event, SectionsEnd):
            return event.offset
    raise AssertionError


@each_stream
@pytest.mark.parametrize("mode", [Mode.OFF, Mode.OBSERVE, Mode.LEGACY])
def test_nothing_changes(fixture: Fixture, mode: Mode) -> None:
    stream = fixture.file("stream")
    gate = Gate(replace(LENIENT, mode=mode))
    out, commit = passed(gate, stream, seed=1)
    assert out == stream
    assert commit is not None
    assert commit <= commit_point(stream)
    if mode is not Mode.OFF:
        assert len(gate.vcpus) == len([e for e in parse(stream).of(DeviceSection) if e.idstr == "cpu"])
        assert gate.digests[0] == gate.digests[1]
    assert not gate.warnings


@each_stream
def test_the_destination_gets_the_record_and_the_commit_point_last(fixture: Fixture) -> None:
    stream = fixture.file("stream")
    gate = Gate(LENIENT)
    out, commit = passed(gate, stream, seed=2)
    assert len(out) == len(stream)
    assert commit == commit_point(out)
    pages = [vcpu.nested.page for vcpu in vcpus_in_l2(out) if vcpu.nested]
    assert all(page and page.startswith(MAGIC, ANNEX_OFFSET) for page in pages)
    assert gate.edits == len(pages)
    assert passed(Gate(replace(LENIENT, mode=Mode.LEGACY)), out)[0] == stream


def test_without_a_return_path_it_stops_before_ram() -> None:
    out, error = stopped(Gate(Policy()), L2)
    assert isinstance(error, PolicyError)
    assert "return-path" in str(error)
    assert len(out) < 100


@pytest.mark.parametrize("name", ["old-return-path", "mid-multifd", "new-postcopy"])
def test_with_a_return_path_it_goes_on(name: str) -> None:
    stream = next(fixture for fixture in STREAMS if fixture.name == name).file("stream")
    gate = Gate(Policy())
    passed(gate, stream)
    assert gate.return_path
    assert gate.machine.startswith("pc-i440fx")


def test_a_destination_that_would_refuse_is_a_veto() -> None:
    # Linux 5.8 to 6.19 refuses nested paging where it has none; so does any kernel without nesting.
    facts = HostFacts(kernel=Version(6, 12, 117), parameters={"kvm_amd": {"nested": "0"}})
    out, error = stopped(Gate(replace(LENIENT, facts=facts)), L2)
    assert isinstance(error, PolicyError)
    assert "vCPU 0: the destination would not run this guest" in str(error)
    assert L2.startswith(out)
    assert len(out) < commit_point(L2)
    warned = Gate(replace(LENIENT, facts=facts, enforcement=Enforcement.WARN))
    passed(warned, L2)
    assert len(warned.warnings) == 1
    silent = Gate(replace(LENIENT, facts=facts, enforcement=Enforcement.OFF))
    passed(silent, L2)
    assert not silent.judged


@each_stream
def test_a_veto_finds_the_destination_between_sections(fixture: Fixture) -> None:
    facts = HostFacts(kernel=Version(6, 12, 117), parameters={"kvm_amd": {"nested": "0"}})
    gate = Gate(replace(LENIENT, facts=facts))
    out, error = stopped(gate, fixture.file("stream"))
    if not list(vcpus_in_l2(fixture.file("stream"))):
        return
    assert isinstance(error, PolicyError)
    assert gate.between_sections
    # Who reads what came out meets the section that withdraws the stream as a section.
    assert isinstance(parse(out + withdrawal(str(error))).error, WithdrawnError)


@pytest.mark.parametrize("size", [61, 4096, 50_000])
def test_where_a_section_may_begin_is_never_claimed_wrongly(size: int) -> None:
    stream = next(fixture for fixture in STREAMS if fixture.name == "mid-return-path").file("stream")
    ends = {
        event.offset + len(event.raw)
        for event in parse(stream).events
        if isinstance(event, (MachineConfiguration, CommandReceived, IterableEnd, DeviceSection))
    }
    gate = Gate(LENIENT)
    out = claimed = 0
    for piece in pieces(stream[: commit_point(stream)], size):
        for data, _ in taken(gate, memoryview(piece)):
            out += len(data)
        claimed += gate.between_sections
        assert not gate.between_sections or out in ends
    assert claimed


@each_stream
@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.ANNEX])
def test_what_no_edit_touches_passes_before_vmdesc_is_read(
    fixture: Fixture, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = fixture.file("stream")
    told = parse(stream)
    if not told.of(VmDescriptionReceived):
        return

    def read(text: bytes, offset: int) -> VmDescription:
        passed_by.append(len(out))
        return VmDescription.parse(text, offset)

    monkeypatch.setattr(tail, "VmDescription", Mock(parse=read))
    passed_by: list[int] = []
    out = b""
    for data, _ in Gate(replace(LENIENT, mode=mode)).receive_data(memoryview(stream)):
        out += data
    # A machine of type q35 has a device of unknown layout before its vCPUs.
    sections = told.of(DeviceSection)
    vcpus = [section.offset for section in sections if section.idstr == "cpu" and section.offset > held(sections)]
    assert passed_by == [min([commit_point(stream), *vcpus])]
    assert len(out) == len(stream)


def held(sections: Sequence[DeviceSection]) -> int:
    """Where the first section stands whose end is known by vmdesc."""
    return next(section.offset for section in sections if section.delimited_by is DelimitedBy.VMDESC)


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.ANNEX])
def test_what_vmdesc_refutes_is_no_commit(mode: Mode) -> None:
    *_, last = parse(L2).of(DeviceSection)
    wrong = L2.replace(b'"name": "' + last.idstr.encode(), b'"name": "' + bytes(reversed(last.idstr.encode())))
    gate = Gate(replace(LENIENT, mode=mode))
    if mode is Mode.OBSERVE:
        assert passed(gate, wrong)[0] == wrong
        assert gate.warnings
    else:
        out, error = stopped(gate, wrong)
        assert isinstance(error, StreamError)
        assert len(out) == commit_point(L2)


def damaged(stream: bytes) -> bytes:
    """The stream with ASID 0 in the page of its vCPU."""
    [vcpu] = vcpus_in_l2(stream)
    assert vcpu.nested is not None
    assert vcpu.nested.page is not None
    at = stream.index(vcpu.nested.page) + CONTROL.offset("asid")
    return stream[:at] + bytes(4) + stream[at + 4 :]


def test_state_that_nobody_loads_is_stopped_whatever_is_known() -> None:
    with pytest.raises(PolicyError, match="asid"):
        passed(Gate(LENIENT), damaged(L2))
    with pytest.raises(RefusedError, match="asid"):
        passed(Gate(replace(LENIENT, enforcement=Enforcement.OFF)), damaged(L2))


def test_observing_never_alters_even_what_it_cannot_read() -> None:
    broken = L2[:-20] + b"\xff" + L2[-19:]
    cut = L2[: len(L2) // 2]
    policy = replace(LENIENT, mode=Mode.OBSERVE, enforcement=Enforcement.WARN)
    for stream in (broken, cut, damaged(L2), b"QEVM" + bytes(100)):
        gate = Gate(policy)
        assert passed(gate, stream, seed=3)[0] == stream
        assert gate.warnings


def test_a_damaged_stream_stops_before_the_commit_point() -> None:
    out, error = stopped(Gate(LENIENT), L2[:-20] + b"\xff" + L2[-19:])
    assert isinstance(error, StreamError)
    assert len(out) <= commit_point(L2)


@pytest.mark.parametrize("seed", [None, *range(8)])
def test_observing_survives_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch, seed: int | None) -> None:
    def fails(*_: object) -> str:
        raise KeyError("no such key")

    monkeypatch.setattr("qmpfilter.filter.rewriter.described", fails)
    gate = Gate(replace(LENIENT, mode=Mode.OBSERVE))
    assert passed(gate, L2, seed=seed)[0] == L2
    assert "KeyError" in gate.warnings[0]


@pytest.mark.parametrize("seed", [None, *range(8)])
@pytest.mark.parametrize("name", ["mid-mixed", "old-postcopy"])
def test_observing_can_still_veto(name: str, seed: int | None) -> None:
    stream = next(fixture for fixture in STREAMS if fixture.name == name).file("stream")
    size = len(stream) if seed is None else 40_000 + 1000 * seed
    facts = HostFacts(kernel=Version(6, 12, 117), parameters={"kvm_amd": {"nested": "0"}})
    out, error = stopped(Gate(replace(LENIENT, mode=Mode.OBSERVE, facts=facts)), stream, size)
    assert isinstance(error, PolicyError)
    assert "vCPU" in str(error)
    assert len(out) <= commit_point(stream)


def test_native_svm2_is_judged_as_it_goes_on() -> None:
    taking = replace(LENIENT, facts=HostFacts(formats=("svm2",)))
    came, _ = passed(Gate(replace(taking, mode=Mode.NATIVE)), L2)
    stock = replace(LENIENT, facts=HostFacts(formats=("legacy", "annex")))
    assert passed(Gate(stock), came) == passed(Gate(stock), L2)
    _, error = stopped(Gate(replace(stock, mode=Mode.OBSERVE)), came)
    assert isinstance(error, PolicyError)
    assert "no stock QEMU knows its subsection" in str(error)


def test_native_needs_the_word_of_the_destinations_filter() -> None:
    gate = Gate(replace(LENIENT, mode=Mode.NATIVE, peer_tells=True))
    with pytest.raises(PolicyError, match="announce"):
        gate.learn(HostFacts(formats=("legacy", "annex")), False)
    gate.learn(HostFacts(formats=("legacy", "annex")), True)
    assert gate.policy.facts.formats == ("legacy", "annex", "svm2")


def test_the_operators_facts_count_more_than_a_filters_word() -> None:
    own = HostFacts(kernel=Version.parse("6.1"))
    gate = Gate(replace(LENIENT, facts=own, peer_tells=True))
    gate.learn(HostFacts(kernel=Version.parse("6.12")), False)
    assert gate.policy.facts == own


def test_native_only_for_who_announced_it() -> None:
    with pytest.raises(PolicyError, match="announce"):
        Policy(mode=Mode.NATIVE)
    Policy(mode=Mode.NATIVE, facts=HostFacts(formats=("legacy", "svm2")))


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("native", [False, True])
def test_a_vcpu_is_read_and_decided_once(monkeypatch: pytest.MonkeyPatch, native: bool, with_memory: bool) -> None:
    fixture = next(fixture for fixture in STREAMS if fixture.name == "mid-mixed")
    stream, pages = fixture.file("stream"), vmcb12s(fixture)
    if native:
        taking = replace(LENIENT, mode=Mode.NATIVE, facts=HostFacts(formats=("svm2",)))
        stream, _ = passed(Gate(taking), stream)
    did: Counter[str] = Counter()

    def counted(what: str, how: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object) -> object:
            did[what] += 1
            return how(*given)

        return call

    monkeypatch.setattr(CpuSection, "of", counted("read", CpuSection.of))
    monkeypatch.setattr(rewriter_module, "decide", counted("decided", decide))
    gate = Gate(LENIENT, memory=(lambda places: {place: pages[place] for place in places}) if with_memory else None)
    passed(gate, stream)
    # Edits that change a length are divided and read again: both the section as it was and as it is.
    again = 2 * gate.edits if native else 0
    assert did == {"read": len(gate.vcpus) + again, "decided": len(gate.vcpus)}
    assert len(gate.vcpus) > gate.edits > 0


@pytest.mark.parametrize("name", ["mid-l2", "new-postcopy"])
def test_the_kill_switch_passes_every_byte_in_any_division(name: str) -> None:
    stream = next(fixture for fixture in STREAMS if fixture.name == name).file("stream")
    for seed in range(5):
        gate = Gate(LENIENT, lambda: True)
        out, commit = passed(gate, stream, seed=seed)
        assert out == stream
        assert commit is not None
        assert commit <= commit_point(stream)


def vmcb12s(fixture: Fixture) -> dict[int, bytes]:
    """The pages at which VMCB12s stand in guest memory, as QEMU read them at the same stop."""
    pages = fixture.truth()["vmcb12"].values()
    return {int(page["address"], 16): bytes.fromhex(page["bytes"]) for page in pages}


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("name", ["old-l2", "mid-mixed", "new-postcopy", "mid-states", "new-states"])
def test_memory_settles_what_would_be_a_guess(name: str, seed: int | None) -> None:
    fixture = next(fixture for fixture in STREAMS if fixture.name == name)
    stream, pages = fixture.file("stream"), vmcb12s(fixture)
    asked: list[int] = []

    def memory(places: Sequence[int]) -> Mapping[int, bytes]:
        asked.extend(places)
        return {place: pages[place] for place in places}

    gate = Gate(LENIENT, memory=memory)
    out, commit = passed(gate, stream, seed=seed)
    assert commit == commit_point(out)
    vcpus = [vcpu for vcpu in vcpus_in_l2(out) if vcpu.nested is not None and vcpu.nested.page is not None]
    assert sorted(asked) == sorted({vcpu.nested.vmcb_pa for vcpu in vcpus if vcpu.nested})
    assert gate.memory_read == len(asked) > 0
    for vcpu in vcpus:
        assert vcpu.nested is not None
        assert vcpu.nested.page is not None
        flags = {"run_pending": vcpu.nested.run_pending, "gif": vcpu.nested.gif}
        state = annex.decode(vcpu.nested.page, vcpu.nested.vmcb_pa, **flags)
        assert state is not None
        if state.validity & Validity.DR7:
            assert SAVE.get(state.vmcb12_save, "dr7") == BLOCK.get(vcpu.block, "dr7") | 1 << 10
    settled = [
        vcpu
        for vcpu in gate.vcpus
        if any(f.field == "vmcb12_save.dr7" and f.confidence is Confidence.EXACT for f in vcpu.fields)
    ]
    assert settled


@pytest.mark.parametrize("name", ["old-l2", "new-postcopy"])
@pytest.mark.parametrize("policy", [LENIENT, replace(LENIENT, mode=Mode.OBSERVE)], ids=["edits", "observes"])
def test_that_the_tail_begins_is_told_before_anything_may_wait(name: str, policy: Policy) -> None:
    begun: list[bool] = []

    def memory(_: Sequence[int]) -> Mapping[int, bytes]:
        assert begun == [True]
        raise DeadlineError("no answer within 2 s")

    gate = Gate(policy, memory=memory)
    stream = memoryview(next(fixture for fixture in STREAMS if fixture.name == name).file("stream"))
    for data, commit in gate.receive_data(stream):
        if not data and not commit:
            assert gate.holding
            begun.append(True)
        assert begun or not commit
    assert begun == [True]


def test_without_an_answer_from_memory_it_stays_a_guess() -> None:
    def memory(_: Sequence[int]) -> Mapping[int, bytes]:
        raise DeadlineError("no answer within 2 s")

    gate = Gate(LENIENT, memory=memory)
    assert passed(gate, L2)[0] == passed(Gate(LENIENT), L2)[0]
    assert "no answer within 2 s" in gate.warnings[0]


def test_missing_facts_are_told() -> None:
    gate = Gate(LENIENT)
    passed(gate, L2)
    assert "the kernel's version" in gate.missing


@pytest.mark.parametrize("name", ["mid-l2", "new-postcopy"])
def test_after_the_commit_point_everything_passes(name: str) -> None:
    stream = next(fixture for fixture in STREAMS if fixture.name == name).file("stream")
    more = stream[:-1] + b"\xee garbage" * 1000
    gate = Gate(LENIENT)
    out, _ = passed(gate, stream + more, seed=6)
    assert out.endswith(more)
    assert len(out) == len(stream + more)
    assert "passed unread" in gate.warnings[0]


def test_the_kill_switch_lets_the_rest_pass_as_it_is() -> None:
    gate = Gate(LENIENT, lambda: True)
    assert passed(gate, damaged(L2))[0] == damaged(L2)
    assert gate.switched_off
    assert gate.edits == 0
    late = iter([False, True, True, True])
    mixed = next(fixture for fixture in STREAMS if fixture.name == "mid-mixed").file("stream")
    unfinished = Gate(LENIENT, lambda: next(late))
    passed(unfinished, mixed)
    assert not unfinished.switched_off
    assert unfinished.edits == 2


def test_errors_are_of_the_tree() -> None:
    random = Random(4)
    for _ in range(60):
        at = random.randrange(len(L2))
        stream = L2[:at] + random.randbytes(3) + L2[at + 3 :]
        with contextlib.suppress(QmpfilterError):
            passed(Gate(LENIENT), stream, seed=5)
