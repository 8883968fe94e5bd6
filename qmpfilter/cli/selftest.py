# SPDX-License-Identifier: GPL-2.0-or-later
"""`qmpfilter selftest`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from qmpfilter.cli.output import write_out
from qmpfilter.errors import HostError
from qmpfilter.selftest.run import Result
from qmpfilter.selftest.suite import run_all

__all__ = ["selftest"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--filter", "wanted", default="", metavar="TEXT", help="Run only the cases whose name has this in it.")
def selftest(as_json: bool, wanted: str) -> None:
    """Prove the conversions on this host, with KVM itself and a guest of its own.

    A small L1 runs a small L2 in memory. At a stop inside of L2 its nested state is read, converted to svm2 and
    back, and given to a fresh virtual machine, which has to go on exactly as the first one does. Then the same with
    every register of L2 scrambled and rebuilt from svm2 alone. And svm2's save area has to be what KVM itself writes
    at the next #VMEXIT. Needs /dev/kvm with SVM and kvm_amd's parameter nested=1; leaves nothing behind.

    Exit status: 0 every case passed, 3 a case failed or the host has no nested SVM.
    """
    results = []
    for result in run_all(wanted):
        results.append(result)
        if not as_json:
            write_out(_line(result) + "\n")
    if not results:
        raise click.UsageError(f"no case has {wanted!r} in its name")
    if as_json:
        write_out(json.dumps([_document(result) for result in results], indent=2) + "\n")
    failed = sum(bool(result.failures) for result in results)
    if not as_json:
        write_out("".join(f"{line}\n" for line in _exempt(results)))
        write_out(f"{len(results) - failed} of {len(results)} cases passed\n")
    if failed:
        raise HostError(f"{failed} of {len(results)} cases failed")


def _line(result: Result) -> str:
    if result.passed:
        return f"PASS  {result.case.name}"
    return "\n".join([f"FAIL  {result.case.name}", *(f"      {text}" for text in result.failures)])


def _exempt(results: list[Result]) -> Iterator[str]:
    """What was not held against the conversions, since they themselves do not call it exact."""
    for title, named in (
        ("from the stream alone", [result.exempt for result in results]),
        ("with VMCB12 from guest memory", [result.exempt_with_memory for result in results]),
    ):
        registers = sorted({register for exempt in named for register in exempt})
        if not registers:
            continue
        yield f"Not exact by the conversion's own word, {title}: {', '.join(registers)}"
        differed = [f"{name} in {times}" for name in registers if (times := sum(told.get(name, 0) for told in named))]
        yield f"  Of these, other than what KVM wrote: {', '.join(differed) or 'none'}"


def _document(result: Result) -> dict[str, Any]:
    return {
        "case": result.case.name,
        "mode": result.case.mode.value,
        "nested_paging": result.case.nested_paging,
        "passed": result.passed,
        "failures": result.failures,
        "exempt": result.exempt,
        "exempt_with_memory": result.exempt_with_memory,
    }
