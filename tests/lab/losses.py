# SPDX-License-Identifier: GPL-2.0-or-later
"""What legacy state loses of L2 and svm2 keeps, as :mod:`tests.lab.inhost.exact` saw it on each svm2 host.

``python -m tests.lab.losses`` writes the table in examples/kernel/README.md anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .emulator import EmulatedHost
from .package import run_python
from .svm2 import KERNEL, SVM2_HOSTS, boot

SECONDS = 400.0
README = KERNEL / "README.md"
_BEGIN, _END = "<!-- losses: written by tests.lab.losses -->\n", "<!-- end of losses -->\n"

_ANY: Callable[[Mapping[str, Any]], bool] = lambda case: True  # noqa: E731  # a lambda as its neighbours in the table
_OWN_PAT = 1 << 1  # Validity.G_PAT

#: What is lost: the fields of VMCB12's save area that show it, and the cases in which there is something to lose.
LOSSES: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], bool]]] = {
    "DR7": (("dr7",), _ANY),
    "a PAT of L2's own (G_PAT)": (("g_pat",), lambda case: bool(case["validity"] & _OWN_PAT)),
    **{
        f"raw attributes of {name.upper()}": ((f"{name}_attrib",), _ANY)
        for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
    },
}


def observe(host: EmulatedHost, npt: int = 1) -> dict[str, Any]:
    """What the host's kernel, with nested paging or without, does with guests of selftest."""
    left = run_python(host, ["-m", "inhost.exact", str(npt)], {}, SECONDS).files
    told: dict[str, Any] = json.loads(left["exact.json"])
    return told


def rows(told: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """By what is lost, in how many cases it was without svm2 and with it."""
    found = {}
    for loss, (fields, counts) in LOSSES.items():
        cases = [case for case in told["cases"] if counts(case)]
        lost = [sum(any(name in case[way] for name in fields) for case in cases) for way in ("legacy", "svm2")]
        found[loss] = (f"{lost[0]} of {len(cases)}", f"{lost[1]} of {len(cases)}") if cases else ("-", "-")
    return found


def table(by_host: Mapping[str, Mapping[str, tuple[str, str]]]) -> str:
    """The rows of every host side by side."""
    columns = [f"{name}: {way}" for name in by_host for way in ("legacy", "svm2")]
    lines = [f"| VMCB12's, wrong after a restore | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for loss in LOSSES:
        cells = [cell for told in by_host.values() for cell in told[loss]]
        lines.append(f"| {loss} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def written() -> dict[str, dict[str, tuple[str, str]]]:
    """What stands in the README, by host."""
    lines = README.read_text().partition(_BEGIN)[2].partition(_END)[0].splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    by_host: dict[str, dict[str, tuple[str, str]]] = {}
    for loss, *cells in split[2:]:
        for number, name in enumerate(SVM2_HOSTS):
            by_host.setdefault(name, {})[loss] = (cells[2 * number], cells[2 * number + 1])
    return by_host


def main() -> int:
    """Boots each host in turn and writes the table."""
    by_host = {}
    for name in SVM2_HOSTS:
        with boot(name) as host:
            by_host[name] = rows(observe(host))
    write(README, table(by_host))
    return 0


def write(readme: Path, text: str) -> None:
    """Puts a table in the place of the one that is there."""
    before, begin, rest = readme.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    readme.write_text(before + begin + text + end + after)


if __name__ == "__main__":
    sys.exit(main())
