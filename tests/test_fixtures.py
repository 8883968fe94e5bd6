# SPDX-License-Identifier: GPL-2.0-or-later
"""Every recording, to its last byte: parsed, put together again, and held against what QEMU said."""

from __future__ import annotations

import random

import pytest

from qmpfilter.errors import StreamError
from qmpfilter.svm import vmcb
from qmpfilter.wire.events import Event
from qmpfilter.wire.parser import State, StreamParser
from qmpfilter.wire.returnpath import Message, MessageType, ReturnPathEvent, ReturnPathParser
from tests.helpers.fixtures import Fixture, fixtures
from tests.helpers.parse import merged, parse, rejoined, told_by
from tests.helpers.report import report_of
from tests.helpers.truth import decoded_registers, spoken_mask, spoken_registers

STREAMS = fixtures()
# A vCPU in 16 or 32 bit mode shows half of its vector registers and no R8 to R15.
_FEWEST_REGISTERS = 52

# One recording after the other, so that what several tests ask of it is done once.
each_stream = pytest.mark.parametrize("fixture", STREAMS, ids=str, scope="module")


@each_stream
def test_parses_to_the_last_byte_and_re_emits_every_byte(fixture: Fixture) -> None:
    data = fixture.file("stream")
    parser = StreamParser()
    told: tuple[list[Event], StreamError | None] = told_by(parser, data)
    events, error = told
    assert error is None
    assert parser.state is State.DONE
    assert parser.offset == len(data)
    assert rejoined(events) == data


@each_stream
def test_every_register_is_what_qemu_says(fixture: Fixture) -> None:
    truth = fixture.truth()["registers"]
    vcpus = report_of(fixture.file("stream")).vcpus
    assert {str(vcpu.index) for vcpu in vcpus} == set(truth)
    for vcpu in vcpus:
        text = truth[str(vcpu.index)]["text"]
        spoken = spoken_registers(text)
        decoded = decoded_registers(vcpu, spoken_mask(text))
        assert len(spoken) >= _FEWEST_REGISTERS
        assert {name: decoded[name] for name in spoken} == spoken


@each_stream
def test_who_was_in_l2_is_told(fixture: Fixture) -> None:
    vcpus = report_of(fixture.file("stream")).vcpus
    assert {vcpu.index: vcpu.in_l2 for vcpu in vcpus} == {
        facts["index"]: facts["mode"] == "L2" for facts in fixture.facts["vcpus"]
    }
    letters = {facts["index"]: facts.get("letter") for facts in fixture.facts["vcpus"]}
    for vcpu in vcpus:
        assert (vcpu.nested is not None) == vcpu.in_l2
        # Mode d is the one whose DR7 KVM does not tell; r may have its event in two places.
        natural = {"d": {"dr7-guess"}, "r": {"error-code-missing"}}.get(letters[vcpu.index] or "", set())
        pending = {"run-pending"} if vcpu.nested is not None and vcpu.nested.run_pending else set()
        assert {finding.code for finding in vcpu.findings} - natural == pending


@each_stream
def test_control_area_is_that_of_vmcb12_in_guest_memory(fixture: Fixture) -> None:
    pages = fixture.truth()["vmcb12"]
    vcpus = [vcpu for vcpu in report_of(fixture.file("stream")).vcpus if vcpu.nested]
    assert {str(vcpu.index) for vcpu in vcpus} == set(pages)
    for vcpu in vcpus:
        assert vcpu.nested is not None
        memory = bytes.fromhex(pages[str(vcpu.index)]["bytes"])
        assert int(pages[str(vcpu.index)]["address"], 16) == vcpu.nested.vmcb_pa
        state = vcpu.nested.control
        for name in ("tsc_offset", "asid", "misc_ctl", "nested_cr3", "iopm_base_pa", "msrpm_base_pa"):
            assert vmcb.CONTROL.get(state, name) == vmcb.CONTROL.get(memory, name), name
        for name in vmcb.INTERCEPT_WORDS:
            # From 7.1 on KVM clears the bits of features that the guest CPUID lacks.
            there, given = vmcb.CONTROL.get(memory, name), vmcb.CONTROL.get(state, name)
            assert given & ~there == 0, name


@each_stream
@pytest.mark.parametrize("divisions", [2, pytest.param(25, marks=pytest.mark.fuzz)])
def test_any_division_of_the_input_gives_the_same_events(fixture: Fixture, divisions: int) -> None:
    data = fixture.file("stream")
    expected = merged(parse(data).events)
    dice = random.Random(fixture.name)
    for _ in range(divisions):
        cuts = sorted(dice.sample(range(1, len(data)), dice.choice((1, 2, 10, 200))))
        assert merged(parse(data, cuts).events) == expected


def test_byte_by_byte_gives_the_same_events() -> None:
    smallest = min(STREAMS, key=lambda fixture: len(fixture.file("stream")))
    data = smallest.file("stream")
    assert merged(parse(data, 1).events) == merged(parse(data).events)


@pytest.mark.parametrize("fixture", fixtures(role="return"), ids=str)
def test_return_paths_end_with_success(fixture: Fixture) -> None:
    told: tuple[list[ReturnPathEvent], StreamError | None] = told_by(ReturnPathParser(), fixture.file("return"))
    events, error = told
    assert error is None
    shuts = [event for event in events if isinstance(event, Message) and event.type is MessageType.SHUT]
    assert [shut.value for shut in shuts] == [0]
    assert rejoined(events) == fixture.file("return")


def test_capabilities_that_leave_a_trace_are_told() -> None:
    traced = {"return-path", "postcopy-ram", "xbzrle"}
    for fixture in STREAMS:
        told = set(report_of(fixture.file("stream")).capabilities())
        used = set(fixture.facts["capabilities"])
        # Postcopy opens the return path by itself, which hides whether the capability was set.
        expected = used - {"return-path"} if "postcopy-ram" in used else used
        assert told & traced == expected & traced, fixture.name
