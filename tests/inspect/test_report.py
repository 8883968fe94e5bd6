# SPDX-License-Identifier: GPL-2.0-or-later
"""The report: what it makes of events, for streams that no recording holds."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from qmpfilter.errors import TruncatedError
from qmpfilter.inspect.as_json import report_as_json
from qmpfilter.inspect.as_text import hex_dump, render
from qmpfilter.inspect.collect import Report
from qmpfilter.svm import annex
from qmpfilter.wire.cpu import NESTED_STATE, SUBSECTIONS
from qmpfilter.wire.framing import Command
from tests.helpers import build
from tests.helpers.build import EOS, UNTIL_TAIL, Device, Vmsd
from tests.helpers.report import report_of
from tests.svm.test_annex import STATE

SOURCE = {"kind": "migration stream", "compression": None, "stream_bytes": 0, "domain": None}


ITERATED = (
    build.header()
    + build.configuration()
    + build.start(build.mem_size(build.PAGE, build.row("pc.ram", build.PAGE)) + EOS)
    + build.part(build.zero(0, "pc.ram") + EOS)
)


def with_devices(*devices: Device) -> Report:
    return report_of(UNTIL_TAIL + build.tail(*devices))


def text_of(report: Report) -> str:
    return render(report, SOURCE)


def nested(*children: Vmsd, flags: int, format_: int) -> Vmsd:
    fixed = (
        build.field("flags", build.be((2, flags)), "uint16"),
        build.field("format", build.be((2, format_)), "uint16"),
        build.field("size", build.be((4, 0x1080)), "uint32"),
    )
    state = Vmsd("cpu/kvm_nested_state", fixed, children)
    return Vmsd("cpu/nested_state", (build.struct_field("env.nested_state", state),))


VMX = Vmsd(
    "cpu/kvm_nested_state/vmx",
    (
        build.field("hdr.vmx.vmxon_pa", bytes(8), "uint64"),
        build.field("hdr.vmx.vmcs12_pa", bytes(8), "uint64"),
        build.field("hdr.vmx.smm.flags", bytes(2), "uint16"),
    ),
)


def test_nested_vmx_is_named_and_not_decoded() -> None:
    report = with_devices(build.cpu(4, 0, nested(VMX, flags=1, format_=0)))
    assert report.error is None
    assert report.vcpus[0].vmx
    state = report_as_json(report, SOURCE)["vcpus"][0]["nested_state"]
    assert state == {"format": "vmx", "flags": "0x1", "flag_names": ["GUEST_MODE"], "size": 0x1080}
    assert "nested state of Intel VMX: not decoded" in text_of(report)


def test_an_svm2_record_is_told_and_a_damaged_one_is_refused() -> None:
    page = annex.encode(STATE)
    good = with_devices(build.cpu(4, 0, build.nested_svm(STATE.vmcb_pa, page)))
    assert good.vcpus[0].svm2 == STATE
    told = report_as_json(good, SOURCE)["vcpus"][0]["nested_state"]["svm2"]
    assert (told["flags"], told["exact"]) == (["CONVERTED"], ["G_PAT", "SPEC_CTRL"])
    assert "a record of producer 1, version 1" in text_of(good)
    bad = with_devices(build.cpu(4, 0, build.nested_svm(STATE.vmcb_pa, page[:-1] + b"x")))
    assert bad.vcpus[0].svm2 is None
    assert [finding.code for finding in bad.vcpus[0].findings][-1] == "svm2-record"
    assert "The svm2 record is damaged: offset 0xca4" in " ".join(text_of(bad).split())


def test_an_unknown_subsection_is_named_and_kept() -> None:
    unknown = Vmsd("cpu/from_the_future", (build.field("x", b"12345"),))
    report = with_devices(build.cpu(4, 0, unknown, build.nested_svm()))
    assert report.error is None
    subsections = report_as_json(report, SOURCE)["vcpus"][0]["subsections"]
    assert [(sub["name"], sub["known"]) for sub in subsections] == [
        ("cpu/from_the_future", False),
        ("cpu/nested_state", True),
    ]
    assert report.vcpus[0].nested is not None
    assert "from_the_future" in text_of(report)


def test_a_cpu_section_of_another_version_is_told() -> None:
    report = with_devices(build.cpu(4, 0, version=11, short=272))
    assert report.error is None
    assert (report.vcpus, report.undecoded_vcpus) == ([], 1)
    assert "vCPUs 0; 1 of an unknown version, not decoded" in " ".join(text_of(report).split())


def test_sections_of_a_cut_package_are_salvaged() -> None:
    devices = (build.timer(), build.cpu(4, 0, build.nested_svm()), build.opaque(5, "0000:00:02.0/thing", b"state"))
    contents = build.command(Command.POSTCOPY_LISTEN) + b"".join(device.section() for device in devices)
    package = build.package(contents, build.command(Command.POSTCOPY_RUN))
    report = report_of(ITERATED + package[: -len(devices[-1].section())])
    assert isinstance(report.error, TruncatedError)
    assert [row.name for row in report.sections if row.type == "FULL"] == ["timer", "cpu"]
    assert report.vcpus[0].nested is not None


def test_parts_of_one_iterable_are_one_row() -> None:
    parts = [build.part(build.zero(page * build.PAGE, "pc.ram") + EOS) for page in range(3)]
    stream = (
        build.header()
        + build.configuration()
        + build.start(build.mem_size(3 * build.PAGE, build.row("pc.ram", 3 * build.PAGE)) + EOS)
        + b"".join(parts)
        + build.end(EOS)
        + build.tail()
    )
    report = report_of(stream)
    rows = [row for row in report.sections if row.type == "PART"]
    assert [(row.count, row.size) for row in rows] == [(3, sum(map(len, parts)))]
    assert report.totals.zero == 3
    assert report.complete


@pytest.mark.parametrize(
    ("stream", "ends"),
    [
        (UNTIL_TAIL + build.tail(build.timer()), "complete, divided and checked by vmdesc"),
        (UNTIL_TAIL + build.timer().section(), "not read to its end: cut, damaged or unsupported at offset"),
    ],
    ids=["complete", "cut in the tail"],
)
def test_the_summary_says_how_the_stream_ends(stream: bytes, ends: str) -> None:
    assert ends in text_of(report_of(stream))


def test_nothing_is_shown_of_what_is_no_stream() -> None:
    assert text_of(report_of(b"\x7fELF" + bytes(60))) == ""


def test_sections_of_a_cut_tail_are_salvaged() -> None:
    devices = (build.opaque(1, "0000:00:02.0/thing", b"state"), build.cpu(4, 0, build.nested_svm()))
    report = report_of(UNTIL_TAIL + b"".join(device.section() for device in devices))
    assert report.error is not None
    assert [row.name for row in report.sections if row.type == "FULL"] == ["0000:00:02.0/thing", "cpu"]
    assert report.vcpus[0].nested is not None


def test_json_of_everything_is_json() -> None:
    report = with_devices(build.cpu(4, 0, *_every_subsection()))
    assert report.error is None
    value = json.loads(json.dumps(report_as_json(report, SOURCE)))
    assert all(sub["known"] for sub in value["vcpus"][0]["subsections"])


def _every_subsection() -> Iterable[Vmsd]:
    for name, sub in SUBSECTIONS.items():
        if name != NESTED_STATE.name:
            children = tuple(
                Vmsd(child.name, (build.field("x", bytes(child.layout.size)),)) for child in sub.children.values()
            )
            yield Vmsd(name, (build.field("x", bytes(sub.layout.size)),), children)


def test_hex_dump_leaves_zero_rows_out() -> None:
    data = bytes(16) + b"\x01" + bytes(15) + bytes(16) + b"\xff" * 4
    assert list(hex_dump(data)) == ["010  01" + " 00" * 15, "030  ff ff ff ff"]
