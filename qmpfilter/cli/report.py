# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter report``: what became of one migration, or of many, in the terminal or as a page."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from qmpfilter.cli.output import write_out
from qmpfilter.daemon.config import Config, places
from qmpfilter.daemon.reports import Reports, is_name
from qmpfilter.errors import HostError
from qmpfilter.printable import printable
from qmpfilter.saveimage.outfile import OutputFile

__all__ = ["report"]

_WIDTH: Final = 200
_SPAN: Final = re.compile(r"(\d{1,6})(min|h|d)")
_UNITS: Final = {"min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def _moment(_context: click.Context, _option: click.Parameter, value: str | None) -> datetime | None:
    """So long ago, or a date."""
    if value is None:
        return None
    ago = _SPAN.fullmatch(value)
    with contextlib.suppress(ValueError, OverflowError):
        if ago is not None:
            return datetime.now(UTC) - int(ago[1]) * _UNITS[ago[2]]
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    raise click.BadParameter(f"{value}: 90min, 36h, 2d, 2026-03-01 or 2026-03-01T14:30 (UTC) is needed")


@click.command()
@click.argument("session", metavar="SESSION", required=False)
@click.option(
    "--since", callback=_moment, metavar="WHEN", help="All that began then or later: 90min, 36h, 2d, a date (UTC)."
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page there instead, which needs nothing but a browser.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON; with --since one in each line.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=lambda: places().reports_directory,
    show_default=f"in the configuration's state_directory, {Config().reports_directory}",
    help="Where the daemon keeps its reports.",
)
def report(session: str | None, since: datetime | None, html: Path | None, as_json: bool, directory: Path) -> None:
    """Tell what became of a migration: when what happened, what passed, each vCPU's state before and after, and why.

    SESSION is the name that 'qmpfilter sessions' has for it, or a file that --report wrote. Without it, and without
    --since, the newest migration is told of. No daemon is needed.

    A page has the state of each vCPU in L2, but no register in which the guest works on its data, and no memory.

    Exit status: 0 it is told; 2 a bug of qmpfilter; 3 there is no such report, it cannot be read, or wrong usage.
    """
    if session is not None and since is not None:
        raise click.UsageError("--since tells of all that began then: it goes with no SESSION")
    if html is not None and as_json:
        raise click.UsageError("--html writes a page: it does not go with --json")
    if since is not None and as_json:
        for _, told in _many(directory, since):
            write_out(json.dumps(told) + "\n")
        return
    if since is None:
        title, told = _one(session, directory)
        shown = json.dumps(told, indent=1) + "\n" if as_json else _told(told, title, page=html is not None)
    else:
        shown = _summed(directory, since, page=html is not None)
    if html is None:
        write_out(shown)
        return
    with OutputFile(str(html)) as file:
        file.write(shown.encode())
        file.commit()
    write_out(f"{html}\n")


# What renders is imported where it is called: rich is not needed for JSON.


def _told(told: Mapping[str, Any], title: str, *, page: bool) -> str:
    from qmpfilter.report import page as pages
    from qmpfilter.report.text import report_text
    from qmpfilter.report.told import Told

    return pages.page(Told(told), title) if page else report_text(Told(told), title, _width())


def _summed(directory: Path, since: datetime, *, page: bool) -> str:
    from qmpfilter.report.summary import Summary, summary_page
    from qmpfilter.report.text import summary_text

    summary = Summary(_many(directory, since))
    return (
        summary_page(summary, f"Migrations since {since:%Y-%m-%d %H:%M} UTC")
        if page
        else summary_text(summary, _width())
    )


def _width() -> int:
    return shutil.get_terminal_size((_WIDTH, 0)).columns


def _one(session: str | None, directory: Path) -> tuple[str, Mapping[str, Any]]:
    if session is not None and not is_name(session):
        return printable(Path(session).name), _file(Path(session))
    reports = _reports(directory)
    if session is None:
        session = next(iter(reports.names()), None)
        if session is None:
            raise HostError(f"{directory}: no migration has ended yet")
    told = reports.read(session)
    if told is None:
        raise HostError(
            f"{directory}: no report of {session}; if it still runs, 'qmpfilter show {session}' tells of it"
        )
    return session, told


def _many(directory: Path, since: datetime) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reports = _reports(directory)
    # Names begin with the moment, and are sorted by it.
    first = f"{since.astimezone(UTC):%Y%m%dT%H%M%S}"
    for name in reports.names():
        if name < first:
            return
        try:
            told = reports.read(name)
        except HostError as error:
            # One that is damaged hides none of the others.
            print(f"qmpfilter: {error}", file=sys.stderr)
            continue
        if told is not None:
            yield name, told


def _reports(directory: Path) -> Reports:
    if not directory.is_dir():
        raise HostError(f"{directory}: no reports; --directory names another place")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise HostError(f"{directory}: only the daemon's user may read the reports")
    return Reports(directory)


def _file(path: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise HostError(f"{path}: neither a session's name nor a file") from None
    except (ValueError, RecursionError) as error:
        raise HostError(f"{path}: not a report: {error}") from error
    if not isinstance(told, dict) or "outcome" not in told:
        raise HostError(f"{path}: not a report of a migration")
    return told
