# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU's state before and after, without what a guest works on."""

from __future__ import annotations

import json

from qmpfilter.filter.carrier import Carrier
from qmpfilter.inspect.state import Groups, differing, state_of
from qmpfilter.wire.events import DeviceSection
from tests.helpers.convert import converted
from tests.helpers.migration import STREAM
from tests.helpers.parse import parse

SVM2 = converted(STREAM, Carrier.ANNEX)


def state(stream: bytes) -> Groups:
    return next(state_of(one) for one in parse(stream).of(DeviceSection) if one.idstr == "cpu")


def test_of_a_vcpu_in_l2() -> None:
    told = state(STREAM)
    assert list(told) == ["registers", "segments", "subsections", "nested state", "vmcb12 control", "l1 save"]
    assert told["nested state"]["flag_names"] == "GUEST_MODE GIF_SET"
    assert told["segments"]["cs selector"] == "0x20"


def test_of_one_with_a_record() -> None:
    assert list(state(SVM2))[-3:] == ["svm2", "svm2 l1 visible", "svm2 vmcb12 save"]


def test_nothing_of_what_a_guest_works_on() -> None:
    for stream in (STREAM, SVM2):
        names = {name for group in state(stream).values() for name in group}
        assert not names & {"rax", "rbx", "r8", "r15", "xmm", "fpregs", "ymmh", "insn_bytes"}
        # Opaque bytes would be long.
        assert all(len(str(value)) <= 18 for group in state(stream).values() for name, value in group.items()
                   if name not in ("intercepts", "flag_names", "exact", "flags"))  # fmt: skip
        assert len(json.dumps(state(stream))) < 10_000


def test_what_differs() -> None:
    before: Groups = {"a": {"x": 1, "y": 2}, "b": {"z": 3}}
    after: Groups = {"a": {"x": 1, "y": 5, "w": 6}, "c": {"v": None}}
    assert differing(before, after) == {"a": {"y": 5, "w": 6}, "b": {"z": None}, "c": {"v": None}}
    assert differing(before, before) == {}
