# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of `qmpfilter report` in a real browser: what it makes of them, and that something is to be seen."""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from collections import Counter
from pathlib import Path

import pytest

from qmpfilter.report.page import page
from qmpfilter.report.summary import Summary, summary_page
from qmpfilter.report.told import Told
from tests.report.samples import HOSTILE, SESSION, hostile, sample

pytestmark = pytest.mark.lab

SECONDS = 120
PAGES = {
    "one": lambda: page(Told(sample()), SESSION),
    "hostile": lambda: page(Told(hostile()), SESSION),
    "many": lambda: summary_page(Summary([(SESSION, sample()), (SESSION, hostile())]), "Migrations"),
}
# What a browser must find in each.
SEEN = {
    "one": ("the destination runs the guest", "pass 1 over memory", "svm2 vmcb12 save, 70 fields"),
    "hostile": ("&lt;script&gt;document.title",),
    "many": ("longest hold", "What the outcomes mean"),
}
LIGHT, DARK = (), ("--blink-settings=preferredColorScheme=0",)
WIDTH, HEIGHT = 1200, 900


def chromium(directory: Path, *arguments: str) -> str:
    """What it prints, in a profile of its own."""
    argv = [
        "/usr/bin/chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={directory / 'profile'}", f"--window-size={WIDTH},{HEIGHT}", *arguments,
    ]  # fmt: skip
    return subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True, timeout=SECONDS
    ).stdout


def pixels(png: bytes) -> Counter[bytes]:
    """How often which colour is there: rows without a filter are enough to tell."""
    width, height, depth, colours = struct.unpack_from(">IIBB", png, 16)
    assert (width, height, depth, colours in (2, 6)) == (WIDTH, HEIGHT, 8, True)
    size = 3 if colours == 2 else 4
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    return Counter(
        row[n : n + 3] for row in _rows(zlib.decompress(data), width * size, size) for n in range(0, len(row), size)
    )


def _rows(data: bytes, length: int, size: int) -> list[bytes]:
    """Undo the filters (PNG specification, section 9)."""
    rows: list[bytes] = []
    above = bytes(length)
    for start in range(0, len(data), length + 1):
        kind, row = data[start], bytearray(data[start + 1 : start + 1 + length])
        if kind:
            for n in range(length):
                left, corner = (row[n - size], above[n - size]) if n >= size else (0, 0)
                row[n] = (row[n] + _predicted(kind, left, above[n], corner)) & 0xFF
        above = bytes(row)
        rows.append(above)
    return rows


def _predicted(kind: int, left: int, up: int, corner: int) -> int:
    if kind < 4:
        return (left, up, (left + up) // 2)[kind - 1]
    near = left + up - corner
    return min((left, up, corner), key=lambda value: abs(near - value))


@pytest.mark.parametrize("name", PAGES)
def test_what_a_browser_makes_of_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGES[name]())
    dom = chromium(tmp_path, "--dump-dom", f"file://{file}")
    for text in SEEN[name]:
        assert text in dom
    # Nothing was taken for an element that is none, and nothing was run.
    assert not re.search(r"<(script|img|iframe)\b", dom)
    assert "<title>taken over" not in dom
    assert HOSTILE not in dom


@pytest.mark.parametrize(("scheme", "ground"), [(LIGHT, "f6f7f8"), (DARK, "12161a")], ids=["light", "dark"])
def test_there_is_something_to_be_seen(scheme: tuple[str, ...], ground: str, tmp_path: Path) -> None:
    file, shot = tmp_path / "page.html", tmp_path / "page.png"
    file.write_text(PAGES["one"]())
    chromium(tmp_path, *scheme, f"--screenshot={shot}", f"file://{file}")
    colours = pixels(shot.read_bytes())
    assert colours[bytes.fromhex(ground)] > WIDTH * HEIGHT // 10
    # Text with smooth edges, bars and marks.
    assert len(colours) > 50
    for bar in ("5f8dc4", "d9822b" if scheme is LIGHT else "e0953f"):
        assert colours[bytes.fromhex(bar)] > 100
