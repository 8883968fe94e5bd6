# SPDX-License-Identifier: GPL-2.0-or-later
"""Native nested state is shown as what it means, beside its record."""

from __future__ import annotations

import dataclasses

from qmpfilter.filter.carrier import Carrier
from qmpfilter.inspect.as_json import vcpu_as_json
from qmpfilter.inspect.as_text import render
from qmpfilter.svm import native
from qmpfilter.wire import cpu
from tests.helpers.convert import converted
from tests.helpers.fixtures import fixtures
from tests.helpers.report import report_of

ORIGINAL = next(fixture for fixture in fixtures() if fixture.name == "mid-l2").file("stream")
NATIVE = converted(ORIGINAL, Carrier.NATIVE)
ABOUT = {"kind": "migration stream", "compression": None, "stream_bytes": len(NATIVE), "domain": None}


def test_the_legacy_half_is_shown_under_its_own_format() -> None:
    (before,), (after,) = report_of(ORIGINAL).vcpus, report_of(NATIVE).vcpus
    assert before.nested is not None
    assert after.nested == dataclasses.replace(before.nested, format=native.FORMAT, size=native.SIZE)
    assert after.svm2 is not None
    assert after.findings == ()


def test_text_and_json_name_it() -> None:
    report = report_of(NATIVE)
    text = render(report, ABOUT)
    assert "svm2  native state of producer 1, version 1" in text
    assert "INTERCEPT_VMRUN" in text
    value = vcpu_as_json(report.vcpus[0])
    assert value["nested_state"]["format"] == "svm2"
    assert value["nested_state"]["svm2"]["producer"] == 1
    (nested,) = (sub for sub in value["subsections"] if sub["name"] == cpu.NESTED_STATE.name)
    (child,) = nested["subsections"]
    assert child["fields"]["vmcb_pa"] == value["nested_state"]["vmcb_pa"]
    assert "l1_save" not in child["fields"]


def test_damage_is_a_finding() -> None:
    damaged = bytearray(NATIVE)
    damaged[damaged.index(b"cpu/kvm_nested_state/svm2\0\0\0\1") + 29 + 7] |= 1
    (vcpu,) = report_of(bytes(damaged)).vcpus
    assert "svm2-record" in [finding.code for finding in vcpu.findings]
    assert vcpu.svm2 is None
