# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry point, and what an error becomes: one line and an exit status that says who is to blame.

0 fine, 1 the stream, 2 qmpfilter itself, 3 the host or the way the command was called; what more a command has (4 and
above) its help says.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import chain
from typing import Final

import click

from qmpfilter import __version__
from qmpfilter.errors import BugError, HostError, QmpfilterError, StreamError
from qmpfilter.printable import printable

__all__ = ["EXIT_BUG", "EXIT_FINE", "EXIT_HOST", "EXIT_STREAM", "GROUPS", "cli", "main"]

EXIT_FINE: Final = 0
EXIT_STREAM: Final = 1
EXIT_BUG: Final = 2
EXIT_HOST: Final = 3
_EXIT_INTERRUPTED: Final = 130


# Each in the module of this package that has its name, or that is named below, loaded only when it is called: what
# one of them needs, another's host may lack.
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "streams": ("inspect", "convert", "verdict"),
    "one migration": ("relay", "migrate", "pipe", "policy"),
    "this host": ("doctor", "selftest", "hooks"),
    "the daemon": ("run", "status", "reload", "off", "on"),
    "its sessions": ("start", "stop", "sessions", "show"),
    "records": ("report", "audit"),
    "the cluster": ("rollout", "hosts", "explain"),
}
_COMMANDS: Final = tuple(chain.from_iterable(GROUPS.values()))
_MODULES: Final = {
    **dict.fromkeys(("status", "sessions", "show", "start", "stop", "reload", "off", "on"), "control"),
    "hosts": "cluster",
}


class _Commands(click.Group):
    """The commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"qmpfilter.cli.{_MODULES.get(name, name)}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """By their names, so that all of them fit a screen; nothing is loaded for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(group, ", ".join(names)) for group, names in GROUPS.items()])


@click.group(
    cls=_Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 fine; 1 the stream; 2 a bug of qmpfilter; 3 this host, or wrong usage. "
    "'qmpfilter COMMAND --help' tells what more a command has.",
)
@click.version_option(__version__, prog_name="qmpfilter")
def cli() -> None:
    """Live migration of AMD virtual machines that run virtual machines."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        # A command may give back a status of its own, which its help explains.
        status = cli.main(args=arguments, prog_name="qmpfilter", standalone_mode=False)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "qmpfilter"
        hint = f"; see {command} --help" if isinstance(error, click.UsageError) else ""
        # click puts choices on lines of their own.
        said = " ".join(error.format_message().split())
        return _say(f"{said.rstrip('.')}{hint}", EXIT_HOST)
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", _EXIT_INTERRUPTED)
    except StreamError as error:
        return _say(str(error), EXIT_STREAM)
    except HostError as error:
        return _say(str(error), EXIT_HOST)
    except OSError as error:
        return _say(_sentence(error), EXIT_HOST)
    except QmpfilterError as error:
        return _bug(error) if isinstance(error, BugError) else _say(str(error), EXIT_HOST)
    except Exception as error:
        return _bug(error)
    return status if isinstance(status, int) else EXIT_FINE


def _sentence(error: OSError) -> str:
    why = error.strerror or str(error)
    return why if error.filename is None else f"{os.fsdecode(error.filename)}: {why}"


def _say(message: str, status: int) -> int:
    # One line, and nothing that a terminal would obey: a message may quote a file's name.
    if sys.stderr is not None:
        print(f"qmpfilter: {printable(message)}", file=sys.stderr)
    return status


def _bug(error: Exception) -> int:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return _say(f"a bug of qmpfilter at {place}: {type(error).__name__}: {error}; please report it", EXIT_BUG)
