# SPDX-License-Identifier: GPL-2.0-or-later
"""vmdesc after edits: spliced as QEMU writes it, and true."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from qmpfilter.errors import BugError, StreamError, UnsupportedError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.description import described
from qmpfilter.wire.events import DeviceSection, VmDescriptionReceived
from qmpfilter.wire.vmdesc import VmDescription
from tests.filter.sections import good, stream
from tests.helpers.build import EOF, UNTIL_TAIL, description
from tests.helpers.convert import converted
from tests.helpers.fixtures import fixtures
from tests.helpers.parse import parse

L2 = next(fixture for fixture in fixtures() if fixture.name == "mid-l2").file("stream")
CHILD = (
    b'{"vmsd_name": "cpu/kvm_nested_state/svm2", "version": 1, "fields": ['
    b'{"name": "hdr.svm2.vmcb_pa", "type": "uint64", "size": 8}, '
    b'{"name": "hdr.svm2.gpat", "type": "uint64", "size": 8}, '
    b'{"name": "hdr.svm2.validity", "type": "uint64", "size": 8}, '
    b'{"name": "hdr.svm2.svm2_flags", "type": "uint32", "size": 4}, '
    b'{"name": "hdr.svm2.producer", "type": "uint16", "size": 2}, '
    b'{"name": "hdr.svm2.producer_version", "type": "uint16", "size": 2}, '
    b'{"name": "hdr.svm2.cr0", "type": "uint64", "size": 8}, '
    b'{"name": "hdr.svm2.cr3", "type": "uint64", "size": 8}, '
    b'{"name": "hdr.svm2.cr4", "type": "uint64", "size": 8}, '
    b'{"name": "hdr.svm2.efer", "type": "uint64", "size": 8}, '
    b'{"name": "hdr.svm2.pat", "type": "uint64", "size": 8}, '
    b'{"name": "data.svm2[0].l1_save", "array_len": 768, "type": "uint8", "size": 1}, '
    b'{"name": "data.svm2[0].reserved_l1", "array_len": 3328, "type": "uint8", "size": 1}, '
    b'{"name": "data.svm2[0].vmcb12_control", "array_len": 1024, "type": "uint8", "size": 1}, '
    b'{"name": "data.svm2[0].vmcb12_save", "array_len": 768, "type": "uint8", "size": 1}, '
    b'{"name": "data.svm2[0].reserved_vmcb12", "array_len": 2304, "type": "uint8", "size": 1}]}'
)
OLD_CHILD = (
    b'{"vmsd_name": "cpu/kvm_nested_state/svm", "version": 1, "fields": ['
    b'{"name": "hdr.svm.vmcb_pa", "type": "uint64", "size": 8}, '
    b'{"name": "data.svm[0].vmcb12", "array_len": 4096, "type": "uint8", "size": 1}]}'
)


def text_of(original: bytes) -> bytes:
    (event,) = parse(original).of(VmDescriptionReceived)
    return event.vmdesc.text


def test_native_replaces_the_child_and_the_size_and_nothing_else() -> None:
    text = text_of(L2)
    assert text.count(OLD_CHILD) == text.count(b'"size": 4142') == 1
    wanted = text.replace(OLD_CHILD, CHILD).replace(b'"size": 4142', b'"size": 8303')
    assert text_of(converted(L2, Carrier.NATIVE)) == wanted
    json.loads(wanted)


def test_annex_leaves_it_alone() -> None:
    assert text_of(converted(L2, Carrier.ANNEX)) == text_of(L2)


def with_text(change: Callable[[bytes], bytes]) -> bytes:
    """A stream of two vCPUs with another vmdesc."""
    original = stream(good(), good(index=1))
    text = text_of(original)
    sections = original[len(UNTIL_TAIL) : -len(EOF + description(text))]
    return UNTIL_TAIL + sections + EOF + description(change(text))


def test_the_text_may_be_spaced_in_another_way() -> None:
    original = with_text(lambda text: text.replace(b": ", b":").replace(b", ", b" ,\n"))
    usual = stream(good(), good(index=1))
    there = converted(original, Carrier.NATIVE)
    assert json.loads(text_of(there)) == json.loads(text_of(converted(usual, Carrier.NATIVE)))
    assert json.loads(text_of(converted(there, Carrier.LEGACY))) == json.loads(text_of(usual))


ODD: dict[str, Callable[[bytes], bytes]] = {
    "a key twice": lambda text: text.replace(
        b'"type": "struct", "struct": {"vmsd_name": "cpu/kvm_nested_state"',
        b'"type": "struct", "type": "struct", "struct": {"vmsd_name": "cpu/kvm_nested_state"',
    ),
    "the name not first": lambda text: text.replace(
        b'{"vmsd_name": "cpu/nested_state", ', b'{"extra": {"a": 1}, "vmsd_name": "cpu/nested_state", '
    ),
    "a second field": lambda text: text.replace(
        b'{"name": "env.nested_state"', b'{"name": "empty", "size": 0}, {"name": "env.nested_state"'
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_a_shape_that_qemu_does_not_write_is_refused(case: str) -> None:
    original = with_text(ODD[case])
    assert text_of(original) != text_of(stream(good(), good(index=1)))
    with pytest.raises(UnsupportedError, match="vmdesc of 'cpu' 0"):
        converted(original, Carrier.NATIVE)
    # Where the layout stays, nothing in the text is touched.
    assert text_of(converted(original, Carrier.ANNEX)) == text_of(original)


def test_a_text_without_the_nested_state_is_an_error_before_eof() -> None:
    original = with_text(lambda text: text.replace(b"cpu/nested_state", b"cpu/nested_stale"))
    with pytest.raises(StreamError):
        converted(original, Carrier.NATIVE)


def test_sections_that_the_text_does_not_describe_are_a_bug() -> None:
    parsed = parse(converted(L2, Carrier.NATIVE))
    (section,) = (event for event in parsed.of(DeviceSection) if event.idstr == "cpu")
    vmdesc = VmDescription.parse(text_of(L2))
    described(vmdesc, [section], 0)
    with pytest.raises(BugError, match="does not describe"):
        described(vmdesc, [dataclasses.replace(section, body_end=section.body_end + 1)], 0)
