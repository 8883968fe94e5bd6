# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter convert``: a recorded stream or a save image, with another form of the nested state in it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from qmpfilter.cli.interrupt import interruptible
from qmpfilter.cli.output import write_out
from qmpfilter.cli.progress import ReadProgress
from qmpfilter.errors import StreamError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.rewriter import Rewriter, VcpuReport
from qmpfilter.filter.vcpu import Outcome
from qmpfilter.inspect.as_json import error_as_json, finding_as_json
from qmpfilter.saveimage.encoders import Encoder, open_encoder
from qmpfilter.saveimage.outfile import OutputFile
from qmpfilter.saveimage.prefix import open_with_prefix
from qmpfilter.saveimage.source import Source
from qmpfilter.svm.provenance import Confidence
from qmpfilter.wire.feed import NeedData
from qmpfilter.wire.parser import StreamParser

__all__ = ["convert"]

FORMAT: Final = 1
_BUFFER: Final = 256 * 1024
# What a reader must know who asked for no more.
_DOUBTFUL: Final = (Confidence.GUESSED, Confidence.LOST)


@click.command()
@click.argument("source_path", metavar="IN")
@click.argument("target_path", metavar="OUT")
@click.option(
    "--to",
    "target",
    type=click.Choice([carrier.value for carrier in Carrier]),
    required=True,
    help="What is to carry the nested state of each vCPU that is in L2.",
)
@click.option("--verbose", is_flag=True, help="Say of every field how exact it is, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, with stable keys.")
def convert(source_path: str, target_path: str, target: str, verbose: bool, as_json: bool) -> None:
    """Rewrite the nested state in a recorded stream or a libvirt save image.

    IN is a raw stream, a save image, or the recorded main channel of a multifd or postcopy migration,
    plain or compressed with gzip, bzip2, xz, zstd or lzop; - is standard input. OUT is compressed as IN
    was. Everything but the nested state stays as it is, and a stream without any comes out byte for byte.

    \b
    --to annex    adds svm2 behind the legacy state; every kernel and QEMU loads it
    --to legacy   gives back what a kernel gave, without svm2
    --to native   for an endpoint that announced it; every stock QEMU dies on it

    OUT appears whole, readable by its owner alone, or not at all: on any error what was there before still
    is. It may be IN itself.

    Exit status: 0 OUT was written, 1 the stream is damaged, cut, unsupported or refused, 2 a bug of
    qmpfilter, 3 wrong usage or a problem of this host.
    """  # fmt: skip
    if target_path == "-":
        raise click.UsageError("OUT must be a file: what went to a pipe cannot be taken back when the rest fails")
    rewriter = Rewriter(Carrier(target))
    try:
        with interruptible():
            _convert(source_path, target_path, rewriter)
    except StreamError as error:
        if as_json:
            write_out(_as_json(rewriter, target_path, error))
        raise
    write_out(_as_json(rewriter, target_path, None) if as_json else _as_text(rewriter, target_path, verbose=verbose))


def _convert(source_path: str, target_path: str, rewriter: Rewriter) -> None:
    source, prefix = open_with_prefix(source_path)
    with source, OutputFile(target_path) as output:
        # No length of the stream stands before it, so header, XML and cookie stay true.
        output.write(prefix)
        with contextlib.closing(open_encoder(output, source.compression)) as encoder:
            _rewrite(source, rewriter, encoder)
            encoder.finish()
        output.commit()


def _rewrite(source: Source, rewriter: Rewriter, encoder: Encoder) -> None:
    parser = StreamParser()
    buffer = memoryview(bytearray(_BUFFER))
    with ReadProgress("converting", source.size) as progress:
        while count := source.readinto(buffer):
            parser.receive_data(buffer[:count])
            _drain(parser, rewriter, encoder)
            progress.update(source.position())
        parser.receive_eof()
        _drain(parser, rewriter, encoder)
    rewriter.finish()


def _drain(parser: StreamParser, rewriter: Rewriter, encoder: Encoder) -> None:
    while not isinstance(event := parser.next_event(), NeedData):
        for piece in rewriter.take(event):
            encoder.write(piece)


# --- the report --------------------------------------------------------------------------------


def _as_text(rewriter: Rewriter, path: str, *, verbose: bool) -> str:
    total, edited = len(rewriter.vcpus), rewriter.edits
    what = f"{edited} of {total} vCPUs converted to {rewriter.target}" if edited else "the stream is unchanged"
    lines = [f"{path}: {what}"]
    for vcpu in rewriter.vcpus:
        lines += _vcpu_as_text(vcpu, rewriter.target, verbose=verbose)
    return "".join(f"{line}\n" for line in lines)


def _vcpu_as_text(vcpu: VcpuReport, target: Carrier, *, verbose: bool) -> Iterator[str]:
    converted = vcpu.outcome is Outcome.CONVERTED
    yield f"vCPU {vcpu.index}: " + (f"{vcpu.found} -> {target}" if converted else vcpu.outcome.value)
    for finding in vcpu.findings:
        yield f"  {finding.severity.value}: {finding.text} [{finding.code}]"
    for field in vcpu.fields:
        if verbose or field.confidence in _DOUBTFUL:
            yield f"  {field.confidence.value}: {field.field}: {field.why}"


def _as_json(rewriter: Rewriter, path: str, error: StreamError | None) -> str:
    value = {
        "format": FORMAT,
        "output": path,
        "to": rewriter.target.value,
        "written": error is None,
        "edited_vcpus": rewriter.edits,
        "vcpus": _vcpus_as_json(rewriter.vcpus),
        "error": error_as_json(error),
    }
    return json.dumps(value, indent=1) + "\n"


def _vcpus_as_json(vcpus: Sequence[VcpuReport]) -> list[dict[str, Any]]:
    return [
        {
            "index": vcpu.index,
            "offset": vcpu.offset,
            "outcome": vcpu.outcome.name.lower(),
            "found": vcpu.found,
            "fields": [
                {"field": field.field, "confidence": field.confidence.value, "why": field.why}
                for field in vcpu.fields
            ],
            "findings": [finding_as_json(finding) for finding in vcpu.findings],
        }
        for vcpu in vcpus
    ]
