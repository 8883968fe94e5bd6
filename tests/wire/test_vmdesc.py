# SPDX-License-Identifier: GPL-2.0-or-later
"""vmdesc: sizes, offsets in the text, tokens, edits; and text that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpfilter.errors import BugError, LayoutError
from qmpfilter.wire.vmdesc import Device, Splice, VmDescription, shape_of, splice, tokenize
from qmpfilter.wire.vmsd import SubsectionAt
from tests.helpers import build
from tests.helpers.parse import raises_at

Entry = dict[str, Any]


def only(text: str | Entry) -> Device:
    """The one device of a vmdesc that has this entry."""
    entry = text if isinstance(text, str) else json.dumps(text)
    (device,) = VmDescription.parse(b'{"page_size": 4096, "devices": [%b]}' % entry.encode()).devices
    return device


def vmsd(fields: list[Entry], subsections: list[Entry] | None = None, name: str = "x") -> Entry:
    found: Entry = {"vmsd_name": name, "version": 1, "fields": fields}
    return found if subsections is None else found | {"subsections": subsections}


def device(fields: list[Entry], subsections: list[Entry] | None = None) -> Entry:
    return {"name": "x", "instance_id": 0} | vmsd(fields, subsections)


DEVICES = [build.timer(), build.cpu_common(3), build.cpu(4, 0, build.nested_svm()), build.Device(9, "old", bytes(77))]


@pytest.mark.parametrize("old", [False, True])
def test_text_as_qemu_writes_it(old: bool) -> None:
    text = build.vmdesc(DEVICES, old=old)
    parsed = VmDescription.parse(text)
    assert (parsed.text, parsed.page_size) == (text, 4096)
    assert [(each.name, each.instance_id, each.size) for each in parsed.devices] == [
        ("timer", 0, 24),
        ("cpu_common", 0, 8),
        ("cpu", 0, 1817 + 4164),
        ("old", 0, 77),
    ]
    for each, built in zip(parsed.devices, DEVICES, strict=True):
        assert json.loads(text[each.start : each.end]) == built.entry()
        assert text[each.start : each.end].strip() == text[each.start : each.end]


def test_no_devices() -> None:
    assert VmDescription.parse(b'{"page_size":4096,"devices":[]}').devices == ()
    assert VmDescription.parse(b'{ "devices" : [ ] , "page_size" : 4096 }\n').devices == ()


def test_white_space_belongs_to_no_device() -> None:
    first, second = (b'{"name": "%b", "instance_id": 0, "size": %d}' % pair for pair in ((b"a", 1), (b"b", 3)))
    text = b'{"page_size": 1, "devices": [ ' + first + b" , " + second + b"\n]}"
    parsed = VmDescription.parse(text)
    assert [text[each.start : each.end] for each in parsed.devices] == [first, second]


STRUCT = {"name": "s", "type": "struct", "struct": vmsd([{"size": 4}, {"size": 2}], name="inner"), "size": 6}
INNER = vmsd([{"size": 9}], name="x/inner")
# the struct's own fields, and 6 + 7 + 9 bytes of its subsection
DEEP = {"name": "s", "type": "struct", "struct": vmsd([{"size": 4}], [INNER], name="s"), "size": 4 + 22}


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        (device([]), 0),
        ({"name": "x", "instance_id": 0}, 0),
        (device([{"size": 4}, {"size": 8}]), 12),
        (device([{"size": 2, "array_len": 5}, {"size": 1}]), 11),
        (device([{"size": 0, "array_len": 5}]), 0),
        (device([{"size": 2, "index": 0}, {"size": 3, "index": 1}]), 5),
        (device([STRUCT, {"size": 1}]), 7),
        (device([STRUCT | {"array_len": 3}]), 18),
        (device([DEEP]), 26),
        (device([{"size": 1}], [vmsd([{"size": 8}], name="x/sub")]), 1 + 11 + 8),
        (device([{"size": 1}], [vmsd([DEEP], [vmsd([], name="a")], name="x/sub")]), 1 + 11 + 26 + 7),
        ({"name": "x", "instance_id": 0, "size": 5, "fields": [{"name": "data", "size": 5, "type": "buffer"}]}, 5),
        ({"name": "x", "instance_id": 0, "size": 0}, 0),
    ],
)  # fmt: skip
def test_size(entry: Entry, size: int) -> None:
    assert only(entry).size == size


def test_repeated_keys_count_once() -> None:
    """QEMU writes the keys of a list's vmsd once for each element; `size` tells them all."""
    entry = (
        '{"name": "x", "instance_id": 0, "vmsd_name": "x", "version": 1, "fields": [{"name": "list",'
        ' "type": "qtailq", "vmsd_name": "e", "version": 1, "fields": [{"size": 4}],'
        ' "vmsd_name": "e", "version": 1, "fields": [{"size": 4}], "size": 11},'
        ' {"name": "end", "type": "uint8", "size": 1}]}'
    )
    assert only(entry).size == 12


def test_shape_without_subsections() -> None:
    assert shape_of(only(device([{"size": 8, "array_len": 2}, DEEP])), 17) == (17 + 42, ())


def test_shape_of_subsections() -> None:
    """A child of a struct inside the fields is a child of its subsection."""
    first = vmsd([{"size": 2}, DEEP], name="x/first")
    second = vmsd([{"size": 3}], [vmsd([{"size": 4}], name="x/second/below")], name="x/second")
    found = shape_of(only(device([{"size": 10}], [first, second])), 100)
    assert found == (
        110,
        (
            SubsectionAt("x/first", 1, 110, 123, 151, (SubsectionAt("x/inner", 1, 129, 142, 151),)),
            SubsectionAt("x/second", 1, 151, 165, 192, (SubsectionAt("x/second/below", 1, 168, 188, 192),)),
        ),
    )


def test_shape_of_nested_state() -> None:
    text = build.vmdesc([build.cpu(4, 0, build.nested_svm())])
    found = shape_of(VmDescription.parse(text).devices[0], 17)
    svm = SubsectionAt("cpu/kvm_nested_state/svm", 1, 17 + 1847, 17 + 1877, 17 + 5981)
    assert found == (17 + 1817, (SubsectionAt("cpu/nested_state", 1, 17 + 1817, 17 + 1839, 17 + 5981, (svm,)),))


# --- text that is no vmdesc

BEFORE = b'{"page_size": 4096, "devices": ['
FIRST = b'{"name": "a", "instance_id": 0, "size": 1}, '


@pytest.mark.parametrize(
    ("text", "at", "expected"),
    [
        (b"", 0, "{ in vmdesc"),
        (b"[]", 0, "{ in vmdesc"),
        (b' {"page_size": 4096, "devices": []}', 0, "{ in vmdesc"),
        (b"{}", 1, "JSON of vmdesc"),
        (b'{"page_size": 4096}', 0, "page_size and devices"),
        (b'{"devices": []}', 0, "page_size and devices"),
        (b'{"page_size": "4096", "devices": []}', 0, "page_size and devices"),
        (b'{"page_size": NaN, "devices": []}', 0, "page_size and devices"),
        (b'{"page_size" 4096}', 13, ": in vmdesc"),
        (b'{"page_size": 4096', 18, "} in vmdesc"),
        (b'{"page_size": 4096,}', 19, "JSON of vmdesc"),
        (b'{"page_size": 4096, "devices": {}}', 31, "[ in vmdesc"),
        (b'{"page_size": 4096, "devices": [],', 34, "JSON of vmdesc"),
        (b'{"page_size": 4096, "devices": []}\0', 34, "the end of vmdesc"),
        (b'{"page_size": 4096, "devices": []}{}', 34, "the end of vmdesc"),
        (b'{"page_size": 4096, "devices": [7]}', 32, "Expected `object`, got `int`"),
        (BEFORE + FIRST + b"]}", len(BEFORE + FIRST), "JSON of vmdesc"),
        (b'{"caf\xc3\xa9": 1}', 5, "ASCII text"),
        (b'{"a": "\xff"}', 7, "ASCII text"),
        (b'{"page_size": ' + b"9" * 5000 + b', "devices": []}', 14, "JSON of vmdesc"),
    ],
)
def test_no_vmdesc(text: bytes, at: int, expected: str) -> None:
    with raises_at(LayoutError, 500 + at, expected):
        VmDescription.parse(text, 500)


DEEPER: Entry = {"vmsd_name": "x", "version": 1}
for _ in range(34):
    DEEPER = vmsd([], [DEEPER])


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, "required field `name`"),
        ({"name": 1, "instance_id": 0}, "$.name"),
        ({"name": "x"}, "required field `instance_id`"),
        ({"name": "x", "instance_id": "0"}, "$.instance_id"),
        ({"name": "x", "instance_id": True}, "$.instance_id"),
        ({"name": "x", "instance_id": float("nan")}, "$.instance_id"),
        ({"name": "x", "instance_id": 0, "size": -1}, "$.size"),
        ({"name": "x", "instance_id": 0, "size": 1.5}, "$.size"),
        ({"name": "x", "instance_id": 0, "size": True}, "$.size"),
        ({"name": "x", "instance_id": 0, "size": float("inf")}, "$.size"),
        ({"name": "x", "instance_id": 0, "size": (1 << 40) + 1}, "$.size"),
        (device([{}]), "required field `size` - at `$.fields[0]`"),
        (device([{"size": "4"}]), "$.fields[0].size"),
        (device([{"size": -4}]), "$.fields[0].size"),
        (device([{"size": 10**4000}]), "$.fields[0].size"),
        (device([{"size": 4, "array_len": -1}]), "$.fields[0].array_len"),
        (device([{"size": 4, "array_len": 2.0}]), "$.fields[0].array_len"),
        ({"name": "x", "instance_id": 0, "fields": {}}, "$.fields"),
        ({"name": "x", "instance_id": 0, "fields": [1]}, "$.fields"),
        ({"name": "x", "instance_id": 0, "subsections": "no"}, "$.subsections"),
        (device([], [{"version": 1}]), "required field `vmsd_name`"),
        (device([], [vmsd([], name="")]), "$.subsections[0].vmsd_name"),
        (device([], [vmsd([], name="x" * 256)]), "$.subsections[0].vmsd_name"),
        (device([], [vmsd([], name="x\n")]), "$.subsections[0].vmsd_name"),
        (device([], [vmsd([], name="caf\u00e9")]), "$.subsections[0].vmsd_name"),
        (device([], [{"vmsd_name": "a", "fields": []}]), "required field `version`"),
        (device([], [vmsd([], name="a") | {"version": -1}]), "$.subsections[0].version"),
        (device([], [vmsd([], name="a") | {"version": 1 << 32}]), "$.subsections[0].version"),
        (device([], [vmsd([], name="a") | {"version": True}]), "$.subsections[0].version"),
        (device([], [vmsd([{"size": 1, "struct": 7}])]), "$.subsections[0].fields[0].struct"),
        (device([], [DEEPER]), "nested more than 32 deep"),
    ],
)
@pytest.mark.parametrize("behind", [b"", b", " + FIRST[:-2]], ids=["the last", "not the last"])
def test_no_device(entry: Entry, expected: str, behind: bytes) -> None:
    text = BEFORE + FIRST + json.dumps(entry).encode() + behind + b"]}"
    with raises_at(LayoutError, 500 + len(BEFORE + FIRST), expected):
        VmDescription.parse(text, 500)


@pytest.mark.parametrize("levels", [33, 100, 200, 300, 400, 450, 490, 600, 5000])
def test_deeply_nested_subsections_are_refused(levels: int) -> None:
    one = b'{"vmsd_name": "x", "version": 1, "subsections": ['
    entry = b'{"name": "x", "instance_id": 0, "subsections": [' + one * levels + b"]}" * levels + b"]}"
    with raises_at(LayoutError, 500 + len(BEFORE), "vmdesc"):
        VmDescription.parse(BEFORE + entry + b"]}", 500)


@pytest.mark.parametrize("levels", [33, 50, 100, 500, 1500])
@pytest.mark.parametrize(
    ("inner", "end"),
    [
        (b'"subsections": [', b"]"),
        (b'"fields": [{"size": 1, "struct": {"subsections": [', b"]}}]"),
    ],
    ids=["subsections", "structs"],
)
def test_what_tells_its_size_is_not_nested_without_end_either(levels: int, inner: bytes, end: bytes) -> None:
    one = b'{"vmsd_name": "x", "version": 1, ' + inner
    entry = (
        b'{"name": "x", "instance_id": 0, "size": 5, "subsections": [' + one * levels + (end + b"}") * levels + b"]}"
    )
    with raises_at(LayoutError, 500, "vmdesc"):
        (device,) = VmDescription.parse(BEFORE + entry + b"]}", 500 - len(BEFORE)).devices
        shape_of(device, 17, 500)


def test_an_instance_that_comes_again() -> None:
    """What stands first is not what the text says in the end, and is no measure for the next one."""
    entries = [b'{"name": "b", "instance_id": %d, "size": 1, "instance_id": 3}' % number for number in (7, 9)]
    parsed = VmDescription.parse(BEFORE + b", ".join(entries) + b"]}")
    assert [device.instance_id for device in parsed.devices] == [3, 3]


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}"])
def test_deep_nesting_is_refused(text: bytes) -> None:
    with pytest.raises(LayoutError) as caught:
        VmDescription.parse(text, 500)
    assert 500 <= caught.value.offset <= 500 + len(text)


def test_escapes_in_names() -> None:
    assert only('{"name": "a\\u0041\\/\\"", "instance_id": 0}').name == 'aA/"'


# --- tokens

SPACE = b" \t\r\n"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (b"", []),
        (b" \t\r\n", []),
        (b'{"a": [1, -2.5e+3]}', ["{", "string", ":", "[", "number", ",", "number", "]", "}"]),
        (b"true false null", ["word", "word", "word"]),
        (rb'"\"\\\/\b\f\n\r\t\u00Ff" ""', ["string", "string"]),
        (b'"caf\xc3\xa9"', ["string"]),
    ],
)
def test_tokens(text: bytes, tokens: list[str]) -> None:
    assert [token.kind for token in tokenize(text)] == tokens


def test_tokens_of_a_stretch_keep_their_offsets() -> None:
    text = b'{"a": 12, "b": 3}'
    assert [(token.kind, token.start, token.end) for token in tokenize(text, 6, 9)] == [("number", 6, 8), (",", 8, 9)]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        (b"@", 0),
        (b"1 @", 1),
        (b'"open', 0),
        (b'"a" "\n"', 3),
        (rb'"\x"', 0),
        (rb'"\u12"', 0),
        (b"nul", 0),
        (b"NaN", 0),
        (b"[ \x0c", 1),
        (b"[ \0", 1),
        (b"1 \xa0", 1),
    ],
)
def test_no_token(text: bytes, at: int) -> None:
    with raises_at(LayoutError, at, "a JSON token"):
        list(tokenize(text))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_tokens_cover_all_but_white_space(value: object, ascii_only: bool, indent: int | str | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    at = 0
    for token in tokenize(text):
        assert not text[at : token.start].strip(SPACE)
        assert at <= token.start < token.end
        at = token.end
    assert not text[at:].strip(SPACE)


# --- edits


def test_splice() -> None:
    edits = [Splice(6, 7, b"THREE"), Splice(0, 1, b""), Splice(4, 4, b"+"), Splice(8, 8, b"!")]
    assert splice(b"1 2 _ 3 ", edits) == b" 2 +_ THREE !"
    assert splice(b"same", []) == b"same"


@pytest.mark.parametrize(
    "edits",
    [[Splice(0, 2, b""), Splice(1, 3, b"")], [Splice(3, 5, b"")], [Splice(-1, 1, b"")], [Splice(2, 1, b"")]],
)
def test_splices_must_fit(edits: list[Splice]) -> None:
    with pytest.raises(BugError):
        splice(b"text", edits)


@given(st.binary(max_size=30), st.lists(st.integers(0, 30), max_size=8), st.binary(max_size=3))
def test_splice_keeps_everything_else(text: bytes, cuts: list[int], new: bytes) -> None:
    points = sorted(min(cut, len(text)) for cut in cuts)
    pairs = list(zip(points[::2], points[1::2], strict=False))
    kept, at = [], 0
    for start, end in pairs:
        kept.append(text[at:start])
        at = end
    assert splice(text, [Splice(start, end, new) for start, end in reversed(pairs)]) == new.join([*kept, text[at:]])
