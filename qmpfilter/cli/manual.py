# SPDX-License-Identifier: GPL-2.0-or-later
"""Man pages and shell completions, made of the command line's own definitions.

``python -m qmpfilter.cli.manual DIRECTORY`` writes them as they lie under ``/usr/share``: ``man/man1``, and the
directories where bash, zsh and fish look for what a package brings. SOURCE_DATE_EPOCH, where it is set, is the date
of the pages.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Final, NamedTuple

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from qmpfilter import __version__
from qmpfilter.cli.main import GROUPS, cli
from qmpfilter.daemon.config import DEFAULT, Config

__all__ = ["Page", "completions", "pages", "write"]

_NAME: Final = "qmpfilter"
_EXIT_STATUS: Final = "Exit status: "
# What stands before a paragraph that is not to be wrapped.
_AS_IT_IS: Final = "\b\n"

_SHELLS: Final[Mapping[str, type[ShellComplete]]] = {
    f"bash-completion/completions/{_NAME}": BashComplete,
    f"zsh/vendor-completions/_{_NAME}": ZshComplete,
    f"fish/vendor_completions.d/{_NAME}.fish": FishComplete,
}

_CONFIG: Final = Config()
_FILES: Final = (
    (DEFAULT, "The daemon's configuration, and after it the files in the directory of that name with .d behind it."),
    (_CONFIG.socket, "Where the daemon is spoken to."),
    (_CONFIG.kill_switch, "While this file exists, everything passes as it is."),
    (_CONFIG.reports_directory, "The reports of migrations that ended."),
    (_CONFIG.audit_directory, "The audit log."),
)


class Page(NamedTuple):
    """One man page of section 1."""

    name: str
    text: str


def pages(date: str) -> Iterator[Page]:
    """All of them: of qmpfilter, and of each command."""
    every = dict(_walk((_NAME,), cli, None))
    for path, context in every.items():
        yield Page("-".join(path), "".join(f"{line}\n" for line in _page(path, context, every, date)))


def completions() -> Iterator[tuple[str, str]]:
    """Where under ``/usr/share`` which script lies: click's own, which ask the program itself."""
    for place, shell in _SHELLS.items():
        made = shell(cli, {}, _NAME, f"_{_NAME}_COMPLETE".upper())
        yield place, made.source_template % made.source_vars()


def write(directory: Path, date: str) -> None:
    """Write all of it below a directory."""
    made = {f"man/man1/{page.name}.1": page.text for page in pages(date)} | dict(completions())
    for place, text in made.items():
        path = directory / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _walk(
    path: tuple[str, ...], command: click.Command, parent: click.Context | None
) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    context = click.Context(command, parent, info_name=path[-1], **command.context_settings)
    yield path, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _walk((*path, name), inner, context)


def _page(
    path: tuple[str, ...], context: click.Context, every: Mapping[tuple[str, ...], click.Context], date: str
) -> Iterator[str]:
    command = context.command
    title = _plain("-".join(path))
    yield f'.TH {title.upper()} 1 "{date}" "{_NAME} {__version__}" "User Commands"'
    yield ".SH NAME"
    yield f"{title} \\- {_plain(_summary(command))}"
    yield ".SH SYNOPSIS"
    yield f"\\fB{_plain(' '.join(path))}\\fR {_plain(' '.join(command.collect_usage_pieces(context)))}"
    yield ".SH DESCRIPTION"
    paragraphs = _paragraphs(command)
    yield from _text(text for text in paragraphs if not text.startswith(_EXIT_STATUS))
    yield from _commands(path, every)
    yield ".SH OPTIONS"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        # What arguments are, the description says.
        if isinstance(parameter, click.Option) and record is not None:
            yield from _item(f"\\fB{_plain(record[0])}\\fR", record[1])
    for text in paragraphs:
        if text.startswith(_EXIT_STATUS):
            yield '.SH "EXIT STATUS"'
            yield _plain(text.removeprefix(_EXIT_STATUS))
    if len(path) == 1:
        yield ".SH FILES"
        for file, meaning in _FILES:
            yield from _item(f"\\fI{_plain(str(file))}\\fR", meaning)
    above = {"-".join(path[:length]) for length in range(1, len(path))}
    if above:
        yield '.SH "SEE ALSO"'
        yield ", ".join(f"\\fB{_plain(name)}\\fR(1)" for name in sorted(above))


def _commands(path: tuple[str, ...], every: Mapping[tuple[str, ...], click.Context]) -> Iterator[str]:
    """The commands of a group, those of qmpfilter itself in the order of its help."""
    inner = {other[-1]: other for other in every if other[:-1] == path}
    if not inner:
        return
    yield ".SH COMMANDS"
    for group, names in GROUPS.items() if len(path) == 1 else [("", tuple(inner))]:
        if group:
            yield f'.SS "{_plain(group)}"'
        for name in names:
            yield from _item(f"\\fB{_plain('-'.join(inner[name]))}\\fR(1)", _summary(every[inner[name]].command))


def _paragraphs(command: click.Command) -> list[str]:
    text = "\n\n".join(cleandoc(part) for part in (command.help, command.epilog) if part)
    return text.split("\n\n")


def _summary(command: click.Command) -> str:
    """The first sentence of its help."""
    first = " ".join(_paragraphs(command)[0].split())
    return first.partition(". ")[0].rstrip(".")


def _text(paragraphs: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(paragraphs):
        if number:
            yield ".PP"
        if text.startswith(_AS_IT_IS):
            yield ".nf"
            yield from map(_plain, text.removeprefix(_AS_IT_IS).splitlines())
            yield ".fi"
        else:
            yield _plain(" ".join(text.split()))


def _item(head: str, text: str) -> Iterator[str]:
    yield from (".TP", head, _plain(" ".join(text.split())))


def _plain(text: str) -> str:
    """As roff has it, so that nothing of it is a request and every hyphen can be copied as one."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


def _main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("python -m qmpfilter.cli.manual DIRECTORY", file=sys.stderr)
        return 3
    moment = time.gmtime(float(os.environ.get("SOURCE_DATE_EPOCH") or time.time()))
    write(Path(arguments[0]), time.strftime("%Y-%m-%d", moment))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
