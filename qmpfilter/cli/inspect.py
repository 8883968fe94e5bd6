# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter inspect``: what a recorded migration stream holds."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from qmpfilter.cli.output import write_out
from qmpfilter.cli.progress import ReadProgress
from qmpfilter.errors import HostError, StreamError
from qmpfilter.inspect.as_json import report_as_json
from qmpfilter.inspect.collect import Report
from qmpfilter.saveimage.header import SaveFormat
from qmpfilter.saveimage.source import Source, open_source
from qmpfilter.wire.feed import NeedData
from qmpfilter.wire.parser import StreamParser

__all__ = ["inspect"]

# Larger buffers do not stay in a core's own cache and are read more slowly.
_BUFFER: Final = 256 * 1024


@click.command()
@click.argument("path", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, with stable keys.")
@click.option(
    "--vcpu",
    "vcpus",
    type=click.IntRange(0),
    multiple=True,
    metavar="N",
    help="Show only this vCPU; can be given more than once.",
)
@click.option("--sections", is_flag=True, help="Show only the table of sections.")
@click.option("--hex", "dumps", is_flag=True, help="Add hexadecimal dumps of the VMCB pages.")
def inspect(path: str, as_json: bool, vcpus: tuple[int, ...], sections: bool, dumps: bool) -> None:
    """Show what a migration stream holds, down to each vCPU's nested state.

    FILE is a raw stream, a libvirt save image, or the recorded main channel of a multifd or postcopy
    migration, plain or compressed with gzip, bzip2, xz, zstd or lzop; - is standard input.

    What was read before an error is shown, then the error.

    Exit status: 0 fine; 1 the stream is damaged, cut or of an unsupported kind; 2 a bug of qmpfilter; 3 wrong usage
    or a problem of this host.
    """  # fmt: skip
    if as_json and (sections or dumps or vcpus):
        raise click.UsageError("--json prints everything: it goes with none of --vcpu, --sections and --hex")
    if sections and (dumps or vcpus):
        raise click.UsageError("--sections shows no vCPU: it goes with neither --vcpu nor --hex")
    with open_source(path) as source:
        report, stream_bytes = _read(source)
        about = _about(source, stream_bytes)
    _check_vcpus(report, vcpus)
    if as_json:
        write_out(json.dumps(report_as_json(report, about), indent=1) + "\n")
    else:
        # Imported here: rich is not needed for JSON.
        from qmpfilter.inspect.as_text import render

        terminal = sys.stdout is not None and sys.stdout.isatty()
        shown = render(report, about, terminal=terminal, only_vcpus=vcpus, only_sections=sections, dumps=dumps)
        write_out(shown)
    if report.error is not None:
        raise report.error


def _read(source: Source) -> tuple[Report, int]:
    """Parse a whole input; an error of the stream ends up in the report."""
    report = Report()
    parser = StreamParser()
    buffer = memoryview(bytearray(_BUFFER))
    stream_bytes = 0
    try:
        with ReadProgress("reading", source.size) as progress:
            while count := source.readinto(buffer):
                stream_bytes += count
                parser.receive_data(buffer[:count])
                _drain(parser, report)
                progress.update(source.position())
            parser.receive_eof()
            _drain(parser, report)
    except StreamError as error:
        report.error = error
    return report, stream_bytes


def _drain(parser: StreamParser, report: Report) -> None:
    while not isinstance(event := parser.next_event(), NeedData):
        report.add(event)


def _about(source: Source, stream_bytes: int) -> dict[str, Any]:
    return {
        "kind": source.kind.value,
        "compression": None if source.compression is SaveFormat.RAW else source.compression.label,
        "stream_bytes": stream_bytes,
        "domain": source.domain.name if source.domain else None,
    }


def _check_vcpus(report: Report, wanted: tuple[int, ...]) -> None:
    there = [vcpu.index for vcpu in report.vcpus]
    for index in wanted:
        if index not in there and report.error is None:
            raise HostError(f"no vCPU {index} in this stream; it has {', '.join(map(str, there)) or 'none'}")
