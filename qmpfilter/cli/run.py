# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter run``: the daemon."""

from __future__ import annotations

from pathlib import Path

import click

from qmpfilter.cli.output import write_out
from qmpfilter.daemon.config import DEFAULT, load
from qmpfilter.daemon.server import serve

__all__ = ["run"]


@click.command()
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"The configuration, with FILE.d/*.toml after it. [default: {DEFAULT}, if there is one]",
)
@click.option("--check-config", is_flag=True, help="Only say whether the configuration can be understood.")
def run(config: Path | None, check_config: bool) -> None:
    """Run the daemon, in the foreground: it starts a worker process for every migration and keeps their reports.

    SIGHUP reads the configuration again; a wrong one changes nothing. SIGTERM begins no session any more, waits for
    those that run, and ends. No stream depends on the daemon: workers finish alone when it is gone, and the next
    one takes up where they are.

    Exit status: 0 ended by a signal, or the configuration is fine; 2 a bug of qmpfilter; 3 wrong usage, a wrong
    configuration, or a problem of this host.
    """
    if check_config:
        files = load(config).files
        write_out("".join(f"{file}: fine\n" for file in files) or f"no {DEFAULT}: every key has its default\n")
        return
    serve(config)
