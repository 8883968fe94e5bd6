# SPDX-License-Identifier: GPL-2.0-or-later
"""HTML that cannot be broken by what it shows: every text is escaped unless it was made here."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final

__all__ = ["Html", "document", "element", "joined", "table"]


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *inner: Html | str, **attributes: str) -> Html:
    """An element; text in it and in its attributes is escaped.

    :param attributes: with an underscore behind the name of one that Python keeps for itself
    """
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{joined(inner)}</{name}>")


def joined(parts: Iterable[Html | str]) -> Html:
    """One after the other."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def table(titles: Iterable[str], rows: Iterable[Iterable[Html | str]], **attributes: str) -> Html:
    """A table in a box that scrolls sideways where it does not fit."""
    head = element("thead", element("tr", *(element("th", title, scope="col") for title in titles)))
    body = element("tbody", *(element("tr", *(element("td", cell) for cell in row)) for row in rows))
    return element("div", element("table", head, body, **attributes), class_="wide")


def document(title: str, *body: Html | str) -> str:
    """A whole page that loads nothing, not even if what it shows asks for it."""
    head = joined((
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Html('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        Html(f"<style>{_STYLE}</style>"),
    ))  # fmt: skip
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{element("main", *body)}</body></html>\n'


_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE: Final = """
:root { --ground: #f6f7f8; --sheet: #fff; --ink: #1a2027; --faint: #5d6875; --line: #dde2e7; --good: #18794e;
  --bad: #c4321f; --doubt: #9a6200; --memory: #9db8d9; --pass: #5f8dc4; --hold: #d9822b; --answer: #6aa585;
  --stopped: #8e5ea8; --new: #e7f3ea; --changed: #fdf0d7; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161a; --sheet: #1a2026; --ink: #e4e9ee; --faint: #98a4b1;
  --line: #303942; --good: #5cc28d; --bad: #ff8272; --doubt: #e5b35a; --memory: #41597a; --pass: #5f8dc4;
  --hold: #e0953f; --answer: #4f9272; --stopped: #a87bc2; --new: #1d3327; --changed: #41351b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.35rem; margin: 0.4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 0.8rem; }
h3 { font-size: 0.95rem; margin: 1.2rem 0 0.4rem; }
p { margin: 0.3rem 0; max-width: 60rem; }
section { background: var(--sheet); border: 1px solid var(--line); border-radius: 8px; padding: 1.1rem 1.25rem;
  margin-top: 1rem; }
.outcome { display: inline-block; padding: 0.1rem 0.65rem; border-radius: 1rem; border: 1.5px solid currentColor;
  font-weight: 600; font-size: 0.85rem; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .doubt { color: var(--doubt); }
.faint { color: var(--faint); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 0.75rem; margin-top: 1rem; }
.tile { background: var(--sheet); border: 1px solid var(--line); border-radius: 8px; padding: 0.6rem 0.9rem; }
.tile b { display: block; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere; }
.tile span { color: var(--faint); font-size: 0.82rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.22rem 1.1rem 0.22rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--faint); font-weight: 500; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; } .at { white-space: nowrap; }
code, .values td + td { font-family: ui-monospace, monospace; font-size: 0.92em; }
.values td { overflow-wrap: anywhere; }
tr.changed td, mark.changed { background: var(--changed); color: inherit; }
tr.new td, mark.new { background: var(--new); color: inherit; }
mark { padding: 0 0.35rem; border-radius: 3px; font-size: 0.82rem; }
details { margin: 0.35rem 0; } summary { cursor: pointer; }
.lane { display: grid; grid-template-columns: 8.5rem 1fr; align-items: center; font-size: 0.85rem; }
.track { position: relative; height: 1.5rem; border-left: 1px solid var(--line); border-right: 1px solid var(--line);
  background: linear-gradient(var(--line), var(--line)) center / 100% 1px no-repeat; }
.bar { position: absolute; top: 0.15rem; bottom: 0.15rem; min-width: 3px; border-radius: 3px; overflow: hidden;
  white-space: nowrap; padding: 0 0.3rem; font-size: 0.75rem; line-height: 1.2rem; color: #fff;
  text-shadow: 0 0 3px #0009; }
.mark { position: absolute; top: 0.1rem; bottom: 0.1rem; width: 2px; background: var(--ink); }
.ticks { position: relative; height: 1.4rem; font-size: 0.75rem; color: var(--faint); }
.ticks span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
@media (max-width: 40rem) { .ticks span:nth-child(even) { display: none; } }
.ticks span:first-child { transform: none; } .ticks span:last-child { transform: translateX(-100%); }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin: 0.2rem 0 0.8rem; font-size: 0.82rem; }
.legend i { display: inline-block; width: 0.75rem; height: 0.75rem; border-radius: 2px; margin-right: 0.4rem; }
td code { white-space: nowrap; } .reason { min-width: 20rem; }
.share { display: inline-block; height: 0.7rem; min-width: 2px; border-radius: 2px; background: var(--pass); }
"""
