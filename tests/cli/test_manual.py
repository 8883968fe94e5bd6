# SPDX-License-Identifier: GPL-2.0-or-later
"""Man pages and completions hold what the command line has, and nothing in it goes without a word."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from qmpfilter.cli import main as command_line
from qmpfilter.cli.main import GROUPS, cli
from qmpfilter.cli.manual import completions, pages, write

DATE = "2026-03-01"
PAGES = {page.name: page.text for page in pages(DATE)}
SCREEN_LINES = 24
SCREEN_COLUMNS = 80


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, f"{path}-{name}")


COMMANDS = dict(commands(cli, "qmpfilter"))


def help_text(capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert command_line.main(["--help"]) == 0
    return capsys.readouterr().out.splitlines()


def fits(lines: list[str]) -> bool:
    return len(lines) <= SCREEN_LINES and max(map(len, lines)) <= SCREEN_COLUMNS


def test_the_help_fits_a_screen_and_has_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_text(capsys)
    assert fits(lines)
    for names in GROUPS.values():
        assert any(line.endswith(f"  {', '.join(names)}") for line in lines)


def test_it_will_with_thirty(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "GROUPS", {f"a group {n}": ("selftest",) * 5 for n in range(6)})
    assert fits(help_text(capsys))


def test_no_command_stands_in_two_groups() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))


def test_nothing_is_escaped_twice() -> None:
    assert not [name for name, text in PAGES.items() if r"\e\-" in text]


def test_every_command_has_a_page() -> None:
    assert list(PAGES) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_all_of_a_command_is_in_its_page(name: str) -> None:
    command = COMMANDS[name]
    page = PAGES[name].replace("\\-", "-")
    assert command.help, "a command without a help text"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts[0]} has no help text"
            assert all(option in page for option in (*parameter.opts, *parameter.secondary_opts))
            assert parameter.help.partition("\n")[0] in page
        else:
            words = re.findall(r"\w+", parameter.make_metavar(click.Context(command)))
            assert all(word.lower() in command.help.lower() for word in words)


@pytest.mark.parametrize("name", [name for name in COMMANDS if not isinstance(COMMANDS[name], click.Group)])
def test_every_command_says_its_exit_statuses(name: str) -> None:
    assert '.SH "EXIT STATUS"\n' in PAGES[name]


@pytest.mark.parametrize(
    "argv", [("mandoc", "-Tlint", "-Wwarning"), ("groff", "-man", "-Tutf8", "-ww", "-z")], ids=lambda argv: argv[0]
)
def test_the_pages_are_without_a_warning(argv: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path, DATE)
    files = sorted((tmp_path / "man/man1").iterdir())
    assert len(files) == len(PAGES)
    done = subprocess.run([*argv, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_not_to_be_wrapped_is_not() -> None:
    assert re.search(
        r"^\.nf\noff +passes everything on without reading it\n(.+\n)+\.fi$", PAGES["qmpfilter-relay"], re.M
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_its_completion(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(next(text for place, text in completions() if place.startswith(shell)))
    subprocess.run([shell, "-n", script], check=True)


def test_bash_completes(tmp_path: Path) -> None:
    write(tmp_path, DATE)
    program = tmp_path / "qmpfilter"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m qmpfilter "$@"\n')
    program.chmod(0o755)
    ask = """
        . "$1"/bash-completion/completions/qmpfilter
        COMP_WORDS=("$1/qmpfilter" aud) COMP_CWORD=1
        _qmpfilter_completion "$1/qmpfilter"
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", ask, "bash", tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "audit\n"
