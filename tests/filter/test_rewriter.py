# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole streams: what comes out, when it comes out, and that it comes back."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from qmpfilter.errors import BugError, RecordError, RefusedError, StreamError, UnsupportedError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.rewriter import Rewriter, State
from qmpfilter.filter.vcpu import Outcome
from qmpfilter.svm.annex import ANNEX_OFFSET
from qmpfilter.wire.events import (
    CommandReceived,
    DeviceSection,
    Event,
    PackageEnd,
    RamRecords,
    SectionsEnd,
    VmDescriptionReceived,
)
from qmpfilter.wire.feed import NeedData
from qmpfilter.wire.framing import BE32, Command
from qmpfilter.wire.parser import StreamParser
from tests.filter.sections import good, stream, vcpu
from tests.helpers.build import EOF, EOS, UNTIL_TAIL, command, cpu, end, nested_svm, package, part, zero
from tests.helpers.convert import converted, drain_into, rewritten
from tests.helpers.fixtures import Fixture, fixtures
from tests.helpers.parse import parse, rejoined
from tests.svm.states import Case, outside_l2

LEGACY, ANNEX, NATIVE = Carrier.LEGACY, Carrier.ANNEX, Carrier.NATIVE
STREAMS = fixtures()

# One recording after the other, so that what several tests ask of it is done once.
each_stream = pytest.mark.parametrize("fixture", STREAMS, ids=str, scope="module")


def in_l2(fixture: Fixture) -> int:
    return sum(facts["mode"] == "L2" for facts in fixture.facts["vcpus"])


# --- every recording


@each_stream
def test_annex_and_back_is_the_original(fixture: Fixture) -> None:
    original = fixture.file("stream")
    annexed, rewriter = rewritten(original, ANNEX)
    assert rewriter.edits == in_l2(fixture)
    assert len(annexed) == len(original)
    assert (annexed != original) == bool(in_l2(fixture))
    assert converted(annexed, LEGACY) == original
    assert converted(annexed, ANNEX) == annexed


@each_stream
def test_native_and_back_is_the_original(fixture: Fixture) -> None:
    original = fixture.file("stream")
    natively = converted(original, NATIVE)
    assert converted(natively, LEGACY) == original
    assert converted(natively, NATIVE) == natively
    annexed = converted(original, ANNEX)
    assert converted(natively, ANNEX) == annexed
    assert converted(annexed, NATIVE) == natively


@each_stream
def test_legacy_to_legacy_changes_nothing(fixture: Fixture) -> None:
    original = fixture.file("stream")
    same, rewriter = rewritten(original, LEGACY)
    assert same == original
    assert rewriter.edits == 0


@each_stream
def test_only_the_annex_of_each_page_changes(fixture: Fixture) -> None:
    original = fixture.file("stream")
    annexed = converted(original, ANNEX)
    for before, after in zip(parse(original).events, parse(annexed).events, strict=True):
        if bytes(before.raw) != bytes(after.raw):
            assert isinstance(before, DeviceSection)
            (child,) = before.subsection("cpu/nested_state").children  # type: ignore[union-attr]  # it has one
            start = child.end - 4096 + ANNEX_OFFSET
            assert before.raw[:start] == after.raw[:start]
            assert before.raw[child.end :] == after.raw[child.end :]


@each_stream
@pytest.mark.parametrize("target", [ANNEX, NATIVE])
def test_the_output_is_a_stream_that_vmdesc_describes(fixture: Fixture, target: Carrier) -> None:
    out = parse(converted(fixture.file("stream"), target))
    assert out.error is None
    vcpus = [event for event in out.of(DeviceSection) if event.idstr == "cpu"]
    assert len(vcpus) == len(fixture.facts["vcpus"])
    name = "cpu/kvm_nested_state/svm2" if target is NATIVE else "cpu/kvm_nested_state/svm"
    nested = [section.subsection("cpu/nested_state") for section in vcpus]
    assert [[child.name for child in sub.children] for sub in nested if sub] == [[name]] * in_l2(fixture)


@each_stream
@pytest.mark.parametrize("divisions", [1, pytest.param(4, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("target", [ANNEX, NATIVE])
def test_every_division_gives_the_same(fixture: Fixture, target: Carrier, divisions: int) -> None:
    original = fixture.file("stream")
    whole = converted(original, target)
    chance = random.Random(fixture.name)
    # Where vCPUs stand is where it matters.
    first = min(event.offset for event in parse(original).of(DeviceSection) if event.idstr == "cpu")
    for _ in range(divisions):
        before = [*range(65521, first, 65521), *(chance.randrange(1, first) for _ in range(5))]
        dense = [chance.randrange(first, len(original)) for _ in range(40)]
        assert converted(original, target, sorted({*before, first, *dense})) == whole


def test_every_byte_on_its_own_gives_the_same() -> None:
    original = stream(good(), good(index=1))
    tail = range(len(UNTIL_TAIL), len(original))
    assert converted(original, NATIVE, list(tail)) == converted(original, NATIVE)


# --- when bytes go


def test_bulk_passes_as_the_very_view() -> None:
    original = next(fixture for fixture in STREAMS if fixture.name == "mid-l2").file("stream")
    parser, rewriter = StreamParser(), Rewriter(ANNEX)
    parser.receive_data(original)
    seen = 0
    while not isinstance(event := parser.next_event(), NeedData):
        out = rewriter.take(event)
        if isinstance(event, RamRecords):
            assert [piece is event.raw for piece in out] == [True]
            seen += 1
    assert seen


@pytest.mark.parametrize("target", list(Carrier))
def test_eof_goes_when_vmdesc_has_proved_the_edits(target: Carrier) -> None:
    rewriter = Rewriter(target)
    for event in parse(stream(good())).events:
        out = b"".join(rewriter.take(event))
        if isinstance(event, SectionsEnd):
            assert not out
            assert rewriter.state is State.HELD
        elif isinstance(event, VmDescriptionReceived):
            assert out[:2] == b"\x00\x06"
        else:
            assert bool(out) == bool(event.raw)
    rewriter.finish()


def postcopy(*sections: bytes) -> bytes:
    contents = command(Command.POSTCOPY_LISTEN), *sections, command(Command.POSTCOPY_RUN)
    advised = UNTIL_TAIL.removesuffix(end(zero(0, "pc.ram") + EOS)) + part(zero(0, "pc.ram") + EOS)
    return advised + package(*contents) + end(zero(0, "pc.ram") + EOS) + EOF


@pytest.mark.parametrize(("target", "grown"), [(LEGACY, 0), (ANNEX, 0), (NATIVE, 4161)])
def test_a_package_goes_whole_and_with_its_new_size(target: Carrier, grown: int) -> None:
    original = postcopy(good().section())
    rewriter = Rewriter(target)
    inside = False
    for event in parse(original).events:
        out = b"".join(rewriter.take(event))
        if isinstance(event, CommandReceived) and event.command is Command.PACKAGED:
            inside, size = True, BE32.unpack(event.payload)[0]
            assert not out
        elif isinstance(event, PackageEnd):
            inside = False
            assert out[:5] == bytes.fromhex("0800070004")
            assert BE32.unpack_from(out, 5)[0] == size + grown == len(out) - 9
        else:
            assert bool(out) != inside
    rewriter.finish()
    assert parse(converted(original, target)).error is None
    assert converted(converted(original, target), LEGACY) == original


# --- what is not converted


def test_every_vcpu_is_told_of() -> None:
    vcpus = good(), good(outside_l2(), index=1), vcpu(Case(cpu={"hflags": 0}).block, index=2), good(index=7)
    _, rewriter = rewritten(stream(*vcpus), ANNEX)
    assert [(told.index, told.outcome, told.found) for told in rewriter.vcpus] == [
        (0, Outcome.CONVERTED, LEGACY),
        (1, Outcome.NOT_IN_L2, None),
        (2, Outcome.NOT_IN_L2, None),
        (7, Outcome.CONVERTED, LEGACY),
    ]


REFUSED: dict[str, Callable[[], bytes]] = {
    "asid": lambda: stream(good(), good(Case(control={"asid": 0}), index=5)),
    "guest-mode-disagrees": lambda: stream(good(), good(Case(cpu={"hflags": 0}), index=5)),
    "page-missing": lambda: stream(good(), good(Case(has_page=False), index=5)),
    "in a package": lambda: postcopy(good().section(), good(Case(control={"asid": 0}), index=5).section()),
}


@pytest.mark.parametrize("target", list(Carrier))
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_its_vcpu_and_commits_nothing(case: str, target: Carrier) -> None:
    original = REFUSED[case]()
    error, out = fails(original, target)
    assert isinstance(error, RefusedError)
    assert "vCPU 5 " in str(error)
    # The error says where the nested state stands.
    assert original[error.offset :].startswith(b"\x05\x10cpu/nested_state")
    # Of what went before, no destination runs.
    assert not parse(out).of(SectionsEnd)
    assert not parse(out).of(CommandReceived)
    assert out.count(b"cpu/nested_state") == (0 if case == "in a package" else 1)


def test_a_damaged_record_names_its_vcpu() -> None:
    annexed = bytearray(converted(stream(good(index=2)), ANNEX))
    annexed[annexed.index(b"SVM2") + 0x200] ^= 1
    for target in Carrier:
        error, _ = fails(bytes(annexed), target)
        assert isinstance(error, RecordError)
        assert "vCPU 2 " in str(error)


def test_a_cpu_section_of_another_version_is_not_passed_unread() -> None:
    error, _ = fails(stream(cpu(3, 0, nested_svm(), version=13)), ANNEX)
    assert isinstance(error, UnsupportedError)


def test_an_error_is_final() -> None:
    rewriter = Rewriter(ANNEX)
    events = parse(REFUSED["asid"]()).events
    first = next(error for event in events if (error := refusal(rewriter, event)) is not None)
    assert rewriter.state is State.FAILED
    assert all(refusal(rewriter, event) is first for event in events)
    with pytest.raises(BugError):
        rewriter.finish()


def refusal(rewriter: Rewriter, event: Event) -> RefusedError | None:
    try:
        rewriter.take(event)
    except RefusedError as error:
        return error
    return None


def test_half_a_stream_is_not_finished() -> None:
    rewriter = Rewriter(ANNEX)
    for event in parse(stream(good())).events[:-1]:
        rewriter.take(event)
    with pytest.raises(BugError, match="HELD"):
        rewriter.finish()


@pytest.mark.parametrize("name", ["old-mixed", "new-postcopy"])
def test_a_cut_stream_never_gets_its_end(name: str) -> None:
    original = next(fixture for fixture in STREAMS if fixture.name == name).file("stream")
    sections = [event.offset for event in parse(original).of(DeviceSection)]
    chance = random.Random(name)
    for cut in sorted(chance.randrange(sections[0], len(original)) for _ in range(60)):
        error, out = fails(original[:cut], ANNEX)
        assert isinstance(error, StreamError)
        assert not parse(out).of(SectionsEnd)


def fails(original: bytes, target: Carrier) -> tuple[Exception, bytes]:
    """The error that ends a conversion, and what went before it."""
    parser, rewriter, out = StreamParser(), Rewriter(target), bytearray()
    try:
        parser.receive_data(original)
        drain_into(out, parser, rewriter)
        parser.receive_eof()
        drain_into(out, parser, rewriter)
        rewriter.finish()
    except StreamError as error:
        return error, bytes(out)
    raise AssertionError("no error")


def test_the_parts_of_a_made_up_stream_are_as_told() -> None:
    original = stream(good())
    assert rejoined(parse(original).events) == original
