# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter verdict``: what a destination will do with the nested state in a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Final

import click

from qmpfilter.cli.facts_file import read_facts
from qmpfilter.cli.output import write_out
from qmpfilter.cli.progress import ReadProgress
from qmpfilter.errors import PolicyError, UnsupportedError
from qmpfilter.saveimage.source import Source, open_source
from qmpfilter.svm.section import CpuSection
from qmpfilter.verdict.facts import HostFacts, QemuBinary
from qmpfilter.verdict.judge import Answer, Outcome, StreamVerdict, judge_stream
from qmpfilter.verdict.report import as_json, as_text
from qmpfilter.verdict.version import Version, kernel_version
from qmpfilter.wire import cpu
from qmpfilter.wire.events import DeviceSection
from qmpfilter.wire.feed import NeedData
from qmpfilter.wire.parser import StreamParser

__all__ = ["EXIT_REFUSED", "EXIT_UNKNOWN", "verdict"]

EXIT_REFUSED: Final = 4
EXIT_UNKNOWN: Final = 5
_STATUS: Final = {Outcome.REFUSED: EXIT_REFUSED, Outcome.UNKNOWN: EXIT_UNKNOWN}

_BUFFER: Final = 256 * 1024
_WIDTH: Final = 80
_HOST: Final = "--host, with that host's 'qmpfilter doctor --json',"
# By what a fact begins with; facts as qmpfilter.verdict.attempt names them.
_OPTIONS: Final = {
    "whether KVM nests": "--nested or --no-nested",
    "kvm_amd's npt parameter": "--npt or --no-npt",
    "the guest's MAXPHYADDR": "--maxphyaddr",
    "the guest's CPUID": _HOST,
    "the host's CPUID": _HOST,
    "QEMU's version": "--qemu",
    "the kernel's version": "--kernel",
    "the stable level of kernel": "--kernel with three numbers",
}


@click.command()
@click.argument("path", metavar="IN")
@click.option(
    "--host",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The destination's facts, as 'qmpfilter doctor --json' printed them there; - is standard input.",
)
@click.option(
    "--kernel",
    metavar="V",
    help="The destination's kernel: 6.1.192, or what 'uname -r' says there. A distribution's own, as "
    "6.8.0-45-generic, tells too little: that takes --host.",
)
@click.option("--qemu", metavar="V", help="The destination's QEMU: 7.2, or 10.0.13.")
@click.option("--nested/--no-nested", default=None, help="Whether kvm_amd is loaded with nested=1.")
@click.option("--npt/--no-npt", default=None, help="Whether kvm_amd is loaded with npt=1.")
@click.option(
    "--maxphyaddr",
    type=click.IntRange(32, 52),
    metavar="BITS",
    help="Bits of the guest's physical addresses (QEMU's phys-bits).",
)
@click.option("--json", "as_json_", is_flag=True, help="Print the answer as JSON, with stable keys.")
def verdict(
    path: str,
    host: Path | None,
    kernel: str | None,
    qemu: str | None,
    nested: bool | None,
    npt: bool | None,
    maxphyaddr: int | None,
    as_json_: bool,
) -> int:  # fmt: skip
    """Say what a destination will do with the nested state in a recorded stream: accept it, refuse it (by which
    check), or accept it and lose something.

    IN is a raw stream, a libvirt save image, or the recorded main channel of a multifd or postcopy
    migration, plain or compressed with gzip, bzip2, xz, zstd or lzop; - is standard input. The
    destination is told by --host, by single facts, or by both: a single fact goes before the file's.

    What is not known is not guessed: the answer is then "unknown", with what it hangs on.

    Exit status: 0 accepted, with or without loss; 4 refused; 5 unknown whether it is refused; 1 the
    stream is damaged, cut or of an unsupported kind; 2 a bug of qmpfilter; 3 wrong usage or a problem of
    this host.
    """  # fmt: skip
    if host is None and kernel is None:
        raise click.UsageError("a destination is needed: --host FILE, or --kernel V")
    if str(host) == "-" == path:
        raise click.UsageError("IN and --host cannot both be standard input")
    facts = _facts(host, kernel, qemu, {"nested": nested, "npt": npt}, maxphyaddr)
    with open_source(path) as source:
        answer = judge_stream(_sections(source), facts)
    if as_json_:
        write_out(json.dumps(as_json(answer, facts), indent=1) + "\n")
    else:
        write_out(as_text(answer, facts, path) + "".join(f"{line}\n" for line in _settling(answer)))
    return 0 if answer.outcome is None else _STATUS.get(answer.outcome, 0)


def _facts(
    host: Path | None, kernel: str | None, qemu: str | None, flags: dict[str, bool | None], maxphyaddr: int | None
) -> HostFacts:
    facts = HostFacts() if host is None else read_facts(host)
    if kernel is not None:
        version = kernel_version(kernel)
        if version is None:
            why = (
                "its vendor carries KVM back from newer kernels, so that its number tells nothing; use --host with "
                "that host's 'qmpfilter doctor --json'"
            )
            raise PolicyError(f"kernel {kernel}: {why if kernel[:1].isdigit() else 'no version, as 6.1.192 is'}")
        if version != facts.kernel:
            # KVM's answer was another kernel's.
            facts = replace(facts, nested_state_size=None)
        facts = replace(facts, kernel=version, kernel_release=kernel, kernel_package=None)
    if qemu is not None:
        facts = replace(facts, qemu=(QemuBinary("", Version.parse(qemu)),))
    given = {name: "Y" if value else "N" for name, value in flags.items() if value is not None}
    parameters = {**facts.parameters, "kvm_amd": {**facts.parameters.get("kvm_amd", {}), **given}}
    if flags["nested"] not in (None, facts.nested):
        # What the host said of itself belongs to the parameter it had then.
        facts = replace(facts, nested_state_size=None, supported_cpuid=None)
    return replace(facts, parameters=parameters, maxphyaddr=maxphyaddr)


def _settling(answer: StreamVerdict) -> Iterator[str]:
    """For each fact that a refusal hangs on, the option that tells it."""
    hangs = {
        fact
        for vcpu in answer.vcpus.values()
        for reason in vcpu.reasons
        if reason.answer is Answer.MIGHT_REFUSE
        for fact in reason.missing
    }
    for fact in sorted(hangs):
        option = next((option for what, option in _OPTIONS.items() if fact.startswith(what)), None)
        if option is not None:
            yield fill(f"To settle it: {option} tells {fact}.", _WIDTH, subsequent_indent="  ")


def _sections(source: Source) -> Iterator[CpuSection]:
    parser = StreamParser()
    buffer = memoryview(bytearray(_BUFFER))
    with ReadProgress("reading", source.size) as progress:
        while count := source.readinto(buffer):
            parser.receive_data(buffer[:count])
            yield from _drain(parser)
            progress.update(source.position())
        parser.receive_eof()
        yield from _drain(parser)


def _drain(parser: StreamParser) -> Iterator[CpuSection]:
    while not isinstance(event := parser.next_event(), NeedData):
        if not isinstance(event, DeviceSection) or event.idstr != cpu.IDSTR:
            continue
        if event.version_id != cpu.VERSION:
            raise UnsupportedError(
                event.offset, f"cpu sections of version {cpu.VERSION}", f"one of version {event.version_id}"
            )
        yield CpuSection.of(event)
