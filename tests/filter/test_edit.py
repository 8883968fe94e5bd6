# SPDX-License-Identifier: GPL-2.0-or-later
"""Edits of a section: what stands around them stays, and a wrong one never gets out."""

from __future__ import annotations

import dataclasses

import pytest

from qmpfilter.errors import BugError, UnsupportedError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.edit import Edit, edited
from qmpfilter.filter.vcpu import decide
from qmpfilter.svm.legacy import LegacyState
from qmpfilter.svm.section import CpuSection
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DelimitedBy, DeviceSection
from tests.filter.sections import good, legacy, stream, vcpu
from tests.helpers.build import Device, Vmsd, field
from tests.helpers.convert import converted
from tests.helpers.parse import parse
from tests.svm.states import Case

CASE = Case()
UNKNOWN = Vmsd("cpu/of_tomorrow", (field("all", b"\x05\x10cpu/nested_state"),))
PDPTRS = Vmsd("cpu/pdptrs", (field("all", bytes(range(32))),))


def section_of(stream_: bytes) -> DeviceSection:
    (section,) = (event for event in parse(stream_).of(DeviceSection) if event.idstr == "cpu")
    return section


def edit_of(section: DeviceSection, target: Carrier) -> Edit:
    edit = decide(CpuSection.of(section), target).edit
    assert edit is not None
    return edit


@pytest.mark.parametrize("target", [Carrier.ANNEX, Carrier.NATIVE])
@pytest.mark.parametrize(
    "device",
    [
        good(None, PDPTRS),
        vcpu(CASE.block, PDPTRS, legacy(CASE.state)),
        vcpu(CASE.block, legacy(CASE.state), UNKNOWN, PDPTRS),
        vcpu(CASE.block, UNKNOWN, legacy(CASE.state), PDPTRS),
        vcpu(CASE.block, legacy(CASE.state), others={"cpu/cet": bytes(16), "cpu/cet_shstk": bytes(40)}),
    ],
    ids=["before", "after", "unknown behind", "unknown before", "a child of another"],
)
def test_subsections_around_it_stay(device: Device, target: Carrier) -> None:
    original = stream(device)
    there = converted(original, target)
    before, after = section_of(original), section_of(there)
    assert [sub.name for sub in after.subsections] == [sub.name for sub in before.subsections]
    for old, new in zip(before.subsections, after.subsections, strict=True):
        if old.name != "cpu/nested_state":
            assert before.raw[old.start : old.end] == after.raw[new.start : new.end]
    assert converted(there, Carrier.LEGACY) == original


def test_without_vmdesc_unknown_subsections_forbid_an_edit() -> None:
    section = section_of(stream(vcpu(CASE.block, legacy(CASE.state), UNKNOWN)))
    doubtful = dataclasses.replace(section, delimited_by=DelimitedBy.FOOTER)
    with pytest.raises(UnsupportedError, match="cpu/of_tomorrow"):
        edited(doubtful, edit_of(section, Carrier.ANNEX))


def test_a_second_child_forbids_an_edit() -> None:
    state = legacy(CASE.state)
    inner = state.fields[0].data
    assert isinstance(inner, Vmsd)
    more = dataclasses.replace(inner, subsections=(*inner.subsections, Vmsd("cpu/kvm_nested_state/x", ())))
    both = dataclasses.replace(state, fields=(dataclasses.replace(state.fields[0], data=more),))
    with pytest.raises(UnsupportedError, match="one child of SVM"):
        converted(stream(vcpu(CASE.block, both)), Carrier.ANNEX)


SECTION = section_of(stream(good(None, PDPTRS)))
EDIT = edit_of(SECTION, Carrier.ANNEX)
SVM = cpu.NESTED_STATE_SVM.name


def changed(**payloads: bytes) -> Edit:
    return dataclasses.replace(EDIT, payloads={**EDIT.payloads, **payloads})


@pytest.mark.parametrize(
    "wrong",
    [
        changed(**{SVM: EDIT.payloads[SVM][:-1]}),
        changed(**{SVM: EDIT.payloads[SVM] + b"\0"}),
        changed(**{SVM: EDIT.payloads[SVM][:-1] + b"\xff"}),
        changed(**{cpu.NESTED_STATE.name: bytes(8)}),
        changed(**{cpu.NESTED_STATE.name: bytes(9)}),
        changed(**{"cpu/pdptrs": bytes(31)}),
        changed(**{"cpu/no_such": bytes(8)}),
        dataclasses.replace(EDIT, block=EDIT.block[:-1]),
        dataclasses.replace(EDIT, child=cpu.NESTED_STATE_SVM2, payloads={**EDIT.payloads, SVM + "2": bytes(9)}),
        dataclasses.replace(EDIT, means=dataclasses.replace(EDIT.means, carrier=Carrier.LEGACY)),
        dataclasses.replace(
            EDIT, means=dataclasses.replace(EDIT.means, legacy=LegacyState(0x101, 1, 0x1080, 0x1000, CASE.state.page))
        ),
    ],
    ids=[
        "child cut", "child too long", "record damaged", "header zero", "header too long", "another cut",
        "another that is not there", "block cut", "another child", "another carrier", "another state",
    ],
)  # fmt: skip
def test_an_edit_that_does_not_say_what_it_should_is_a_bug(wrong: Edit) -> None:
    with pytest.raises(BugError):
        edited(SECTION, wrong)


def test_the_right_edit_is_none() -> None:
    assert edited(SECTION, EDIT).raw != SECTION.raw
