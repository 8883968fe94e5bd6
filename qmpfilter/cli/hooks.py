# SPDX-License-Identifier: GPL-2.0-or-later
"""``qmpfilter hooks``: libvirt's hook, installed, looked at, removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from qmpfilter.cli.output import write_out
from qmpfilter.doctor.gather import gather
from qmpfilter.errors import HostError
from qmpfilter.libvirt.hookfiles import HOOKS, HookPlace, Installed, reload_libvirt, shipped_hook

__all__ = ["hooks"]

_WITH_DIRECTORY = (6, 5)


def _directory_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--directory",
        type=click.Path(file_okay=False, path_type=Path),
        default=HOOKS,
        show_default=True,
        help="Where libvirt looks for hooks.",
    )(command)


def _reload_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--reload/--no-reload", "tells", default=True, show_default=True, help="Have libvirt look for hooks again."
    )(command)


@click.group()
def hooks() -> None:
    """Install, look at and remove libvirt's hook, which brings migrations that arrive here to the daemon.

    It is a program of its own that asks the daemon within a deadline. /etc/qmpfilter/hook.conf has its settings,
    lines of "key = value": socket, deadline (10 seconds), require_daemon (no: without a daemon migrations pass
    unfiltered; yes: they are refused).
    """


@hooks.command()
@_directory_option
@_reload_option
def install(directory: Path, tells: bool) -> None:
    """Put the hook beside those of others, and tell libvirt. What is there already stays.

    Exit status: 0 it is there; 2 a bug of qmpfilter; 3 it cannot be put there, or wrong usage.
    """
    shipped = shipped_hook()
    place = _place(directory)
    done = place.install(shipped)
    state = place.look(shipped)
    write_out(f"{state.path}: {'installed' if done else 'was there already'}\n")
    _say_leftovers(state)
    if done and tells:
        _tell_libvirt()


@hooks.command()
@_directory_option
def status(directory: Path) -> None:
    """Say whether the hook is there, is the one of this version, and what else libvirt would run.

    Exit status: 0 it is there and current; 2 a bug of qmpfilter; 3 it is not, or wrong usage.
    """
    state = _place(directory).look(shipped_hook())
    _say_leftovers(state)
    if not state.present:
        raise HostError(f"{state.path}: not installed: 'qmpfilter hooks install'")
    if not state.current:
        raise HostError(f"{state.path}: of another version, or not executable: 'qmpfilter hooks install'")
    write_out(f"{state.path}: installed\n")


@hooks.command()
@_directory_option
@_reload_option
def remove(directory: Path, tells: bool) -> None:
    """Take the hook away, and tell libvirt.

    Exit status: 0 it is not there; 2 a bug of qmpfilter; 3 it cannot be taken away, or wrong usage.
    """
    place = _place(directory)
    done = place.remove()
    write_out(f"{directory}: {'removed' if done else 'was not there'}\n")
    if done and tells:
        _tell_libvirt()


def _place(directory: Path) -> HookPlace:
    version = gather().libvirt
    return HookPlace(directory, with_directory=version is None or version.branch >= _WITH_DIRECTORY)


def _say_leftovers(state: Installed) -> None:
    for path in state.leftovers:
        write_out(f"{path}: libvirt runs this too; remove it unless that is meant\n")


def _tell_libvirt() -> None:
    told = reload_libvirt()
    shown = ", ".join(map(str, told))
    write_out(
        f"libvirt looks for hooks again (process {shown})\n" if told else "no libvirt runs that could be told\n"
    )
