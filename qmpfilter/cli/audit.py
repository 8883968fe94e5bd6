# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter audit``: the log of what was let go."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from qmpfilter.audit.log import AuditLog, Entry
from qmpfilter.cli.output import write_out
from qmpfilter.daemon.config import Config, places
from qmpfilter.errors import HostError

__all__ = ["audit"]

_EXIT_CHANGED: Final = 1
_CHUNK: Final = 1000
_COLUMNS: Final = (
    "number", "at", "session", "decision", "reason", "name", "uuid", "listen", "connect", "asked_by", "mode",
    "edited_vcpus", "corrects", "digest",
)  # fmt: skip


@click.group()
def audit() -> None:
    """The audit log: one record per migration, on the disk before the destination may start the guest.

    Where a migration ended while "released" was written, and the guest was kept, a second record says so; "corrects"
    in it has the number of the first.
    """


def _of_directory(command: Callable[..., int]) -> Callable[..., int]:
    return click.option(
        "--directory",
        type=click.Path(path_type=Path),
        default=lambda: places().audit_directory,
        show_default=f"in the configuration's state_directory, {Config().audit_directory}",
        help="Where the log is.",
    )(command)


@audit.command()
@click.option("--last", metavar="DIGEST", help="The digest of a record that has to be there, as was told before.")
@_of_directory
def verify(directory: Path, last: str | None) -> int:
    """Check that no record was changed, put in, taken out or moved.

    That the newest records are still there can only be told with --last: the digest that this command told before,
    kept where nobody can change it.

    Exit status: 0 it is as it was written; 1 it is not, or that record is missing; 2 a bug of qmpfilter; 3 it cannot
    be read, there is none, or wrong usage.
    """
    records, faults, corrected = 0, 0, 0
    newest: dict[str, Any] | None = None
    oldest: dict[str, Any] | None = None
    found = last is None
    for entry in _entries(directory):
        if entry.fault is not None:
            faults += not entry.fault.cut
            write_out(f"{entry.file}:{entry.line}: {entry.fault.what}\n")
        if entry.record is not None and entry.fault is None:
            records += 1
            corrected += "corrects" in entry.record
            oldest, newest = oldest or entry.record, entry.record
            found = found or entry.record["digest"] == last
    if not found:
        write_out(f"no record has the digest {last}: the newest ones were cut off, or the log is another\n")
    if oldest is not None and newest is not None:
        write_out(f"{records} records, from {_named(oldest)} to {_named(newest)}\n")
        if corrected:
            write_out(f"{corrected} of them correct another: that guest was kept after all\n")
        write_out(f"last digest {newest['digest']}\n")
    return _EXIT_CHANGED if faults or not found else 0


@audit.command()
@click.option("--since", type=click.DateTime(), help="Only records of that time (UTC) or later.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="JSON lines, which have all of a record, or a table.",
)
@_of_directory
def export(directory: Path, since: datetime | None, form: str) -> int:
    """Print the records, the oldest first; what is no record is left out, as 'verify' tells.

    Exit status: 0 they are printed; 2 a bug of qmpfilter; 3 the log cannot be read, there is none, or wrong usage.
    """
    begin = "" if since is None else since.replace(tzinfo=UTC).isoformat()
    wanted = (
        entry.record
        for entry in _entries(directory)
        if entry.record is not None and str(entry.record.get("at", "")) >= begin
    )
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
    if form == "csv":
        table.writeheader()
    for count, record in enumerate(wanted, 1):
        if form == "csv":
            table.writerow(record)
        else:
            text.write(json.dumps(record, ensure_ascii=False) + "\n")
        if count % _CHUNK == 0:
            write_out(text.getvalue())
            text.seek(0)
            text.truncate()
    write_out(text.getvalue())
    return 0


def _named(record: dict[str, Any]) -> str:
    return f"number {record['number']} of {record.get('at', 'an unknown time')}"


def _entries(directory: Path) -> Iterator[Entry]:
    if not directory.is_dir():
        raise HostError(f"{directory}: there is no audit log")
    return AuditLog(directory).entries()
