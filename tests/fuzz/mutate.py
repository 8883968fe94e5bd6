# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways to damage a stream. Each takes the data, its map and a source of chance, and returns other data.

The map is that of the whole recording: after a first mutation its offsets may be off, which is no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from tests.fuzz.recordings import Recording

__all__ = ["MUTATIONS", "Mutation", "division", "mutated"]

Mutation = Callable[[bytes, Recording, Recording, Random], bytes]

_EXTREMES: Final = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 63,
    (1 << 64) - 1,
)
_JUNK: Final = (
    b"\x05", b"\x7e", b"\x00\x06", b"\x08\x00\x07\x00\x04\x00\x00\x00\x00", b"\x08\x00\x01\x00\x00",
    b"\x05\x10cpu/nested_state\x00\x00\x00\x01", b"\x05\x18cpu/kvm_nested_state/svm\x00\x00\x00\x01",
    b"\x05\x18cpu/kvm_nested_state/vmx\x00\x00\x00\x01", b"\x05\x08cpu/nope\x00\x00\x00\x01",
    b"\x7e\x00\x00\x00\x00\x00\x06\x00\x00\x00\x20{\"page_size\": 4096, \"devices\":[]}",
)  # fmt: skip
_JSON: Final = (
    b"[", b"{", b"]", b"}", b",", b'"', b"\\", b"-", b"1e999", b"NaN", b"null", b"true", b"\\u001b[2J", b"\xff",
    b"\x00", b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, b'"size": -1,', b'"array_len": 1099511627776,',
    b'"devices": [],',
    b'"subsections": [], ', b'"struct": {"fields": [], "subsections": [{}]}, ',
)  # fmt: skip
_LONGEST: Final = 64 << 10


def mutated(data: bytes, where: Recording, other: Recording, chance: Random) -> tuple[bytes, str]:
    """Damage the data in one to three ways; returns it and what was done."""
    done: list[str] = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        name = chance.choice(list(MUTATIONS))
        data = MUTATIONS[name](data, where, other, chance)
        done.append(name)
    return data, " + ".join(done)


def division(size: int, chance: Random) -> list[int]:
    """Lengths of the pieces in which to feed an input of `size` bytes."""
    kind = chance.random()
    if kind < 0.4:
        return [size]
    most = size if kind < 0.7 else chance.choice((64, 4096, 65536))
    pieces: list[int] = []
    while size > 0:
        pieces.append(min(size, chance.randint(1, max(1, most)) if len(pieces) < 2000 else size))
        size -= pieces[-1]
    return pieces


def _place(data: bytes, where: Recording, chance: Random) -> tuple[int, int]:
    """A stretch to damage: mostly of a region, sometimes all."""
    if chance.random() < 0.3:
        return 0, len(data)
    region = where.regions[chance.choice(list(where.regions))]
    return chance.choice(region)


def _at(data: bytes, where: Recording, chance: Random) -> int:
    start, end = _place(data, where, chance)
    return min(chance.randrange(start, max(end, start + 1)), max(len(data) - 1, 0))


def _stretch(data: bytes, where: Recording, chance: Random) -> tuple[int, int]:
    """A section, or any stretch, as (start, end)."""
    if chance.random() < 0.5:
        return chance.choice(where.parts)
    start = _at(data, where, chance)
    return start, start + chance.choice((1, 2, 4, 5, 8, chance.randrange(1, 300), chance.randrange(1, _LONGEST)))


def _boundary(data: bytes, where: Recording, chance: Random) -> int:
    return chance.choice(chance.choice(where.parts)) if chance.random() < 0.6 else _at(data, where, chance)


def _cut(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    return data[: _at(data, where, chance)]


def _flip_bits(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    result = bytearray(data)
    for _ in range(chance.randint(1, 8) if data else 0):
        result[_at(data, where, chance)] ^= 1 << chance.randrange(8)
    return bytes(result)


def _set_bytes(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    result = bytearray(data)
    for _ in range(chance.randint(1, 4) if data else 0):
        value = chance.randrange(256) if chance.random() < 0.5 else chance.choice((0, 1, 4, 5, 6, 8, 0x7E, 0xFF))
        result[_at(data, where, chance)] = value
    return bytes(result)


def _number(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    """A length, a count or an id becomes extreme."""
    at, size = chance.choice(where.numbers)
    if chance.random() < 0.2:
        at, size = _at(data, where, chance), chance.choice((2, 4, 8))
    old = int.from_bytes(data[at : at + size], "big")
    new = chance.choice((*_EXTREMES, old + 1, old - 1, old + 0x100, old * 2, chance.getrandbits(64)))
    return data[:at] + (new % (1 << 8 * size)).to_bytes(size, "big") + data[at + size :]


def _remove(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    start, end = _stretch(data, where, chance)
    return data[:start] + data[end:]


def _double(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    start, end = _stretch(data, where, chance)
    times = chance.choice((1, 1, 1, 2, 40)) if end - start < 4096 else 1
    return data[:end] + data[start:end] * times + data[end:]


def _move(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    start, end = _stretch(data, where, chance)
    at = _boundary(data, where, chance)
    return data[:at] + data[start:end] + data[at:]


def _swap(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    (a, b), (c, d) = sorted((chance.choice(where.parts), chance.choice(where.parts)))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data


def _splice(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    """A section or a stretch of another recording."""
    start, end = _stretch(other.data, other, chance)
    at = _boundary(data, where, chance)
    over = end - start if chance.random() < 0.5 else 0
    return data[:at] + other.data[start:end] + data[at + over :]


def _cross(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    """The beginning of one recording and the end of another."""
    return data[: _boundary(data, where, chance)] + other.data[_boundary(other.data, other, chance) :]


def _fill(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    start, end = _stretch(data, where, chance)
    value = chance.choice((b"\0", b"\xff", b"\x05", b"\x7e", b"\x7e\0\0\0\0\0", chance.randbytes(8)))
    size = len(data[start:end])
    return data[:start] + (value * (size // len(value) + 1))[:size] + data[end:]


def _insert(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    at = _boundary(data, where, chance)
    junk = chance.choice((*_JUNK, chance.randbytes(chance.randint(1, 64))))
    return data[:at] + junk * chance.choice((1, 1, 1, 300)) + data[at:]


def _json(data: bytes, where: Recording, other: Recording, chance: Random) -> bytes:
    """Damage vmdesc without touching its length, or with it."""
    if "vmdesc" not in where.regions:
        return _number(data, where, other, chance)
    start, end = where.regions["vmdesc"][0]
    text = data[start + 5 : end]
    at = chance.randrange(len(text) + 1)
    token = chance.choice(_JSON)
    if chance.random() < 0.5:
        marks = [
            place for place in (text.find(mark, at) for mark in (b",", b":", b"{", b"[", b" ", b'"')) if place >= 0
        ]
        at = chance.choice(marks or [at]) + chance.randint(0, 1)
    removed = chance.choice((0, 0, 1, 4, 100))
    text = text[:at] + token + text[at + removed :]
    length = len(text).to_bytes(4, "big") if chance.random() < 0.8 else data[start + 1 : start + 5]
    return data[: start + 1] + length + text + data[end:]


MUTATIONS: Final[Mapping[str, Mutation]] = {
    "cut": _cut,
    "flip bits": _flip_bits,
    "set bytes": _set_bytes,
    "extreme number": _number,
    "remove": _remove,
    "double": _double,
    "move": _move,
    "swap": _swap,
    "splice": _splice,
    "cross": _cross,
    "fill": _fill,
    "insert": _insert,
    "json": _json,
}
