# SPDX-License-Identifier: GPL-2.0-or-later
"""What a daemon is asked: ``status``, ``sessions``, ``show``, ``start``, ``stop``, ``reload``, ``off`` and ``on``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from qmpfilter.cli.cluster import board, configured, operator
from qmpfilter.cli.facts_file import read_facts
from qmpfilter.cli.output import print_json, table, write_out
from qmpfilter.cli.policy_options import accept_option
from qmpfilter.cluster.board import Board, signed
from qmpfilter.daemon.client import ask
from qmpfilter.daemon.config import Config, places
from qmpfilter.daemon.sessions import Stage
from qmpfilter.daemon.switch import KillSwitch
from qmpfilter.errors import DaemonAwayError, HostError, PolicyError
from qmpfilter.filter.policy import Enforcement, Mode
from qmpfilter.relay.address import PAIR, QMP

__all__ = ["asking", "off", "on", "reload", "sessions", "show", "start", "status", "stop"]

_EXIT_MISSING: Final = 4
_LOOK_SECONDS: Final = 0.2
_SWITCH_SECONDS: Final = 2.0
# Both QEMUs may take as long to greet as they are given (qmpfilter.qmp.monitor), and then are asked a few things.
_BEGIN_SECONDS: Final = 25.0
# Stages of a session, and moments of its report, that come without a stream too.
_BEFORE_STREAM: Final = frozenset((Stage.STARTING.value, Stage.WAITING.value, Stage.ENDED.value))


def asking(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """The options of every command that asks a daemon."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON.")(command)
    return click.option(
        "--socket",
        "path",
        type=click.Path(path_type=Path),
        default=lambda: places().socket,
        show_default=f"in the configuration's runtime_directory, {Config().socket}",
        help="Where the daemon answers.",
    )(command)


@click.command()
@asking
def status(path: Path, as_json: bool) -> None:
    """Say how the daemon is.

    Exit status: 0 it answers; 2 a bug of qmpfilter; 3 it does not, or wrong usage.
    """
    answer = ask(path, "status")
    if as_json:
        print_json(answer)
        return
    states = {"draining": answer["draining"], "switched off: everything passes as it is": answer["off"]}
    notes = [name for name, holds in states.items() if holds]
    lines = [
        f"qmpfilter {answer['version']}, process {answer['pid']}, since {answer['began']}",
        f"  {answer['running']} of at most {answer['max_sessions']} sessions run",
        f"  mode {'as the cluster decides' if answer['cluster'] else answer['mode']}, verdict {answer['verdict']}",
        f"  configuration: {', '.join(answer['config']) or 'defaults'}",
        f"  reports: {answer['state']}/sessions",
        *(f"  {line}" for line in _of_cluster(answer["cluster"])),
        *(f"  {note}" for note in notes),
    ]
    write_out("".join(f"{line}\n" for line in lines))


def _of_cluster(told: Mapping[str, Any] | None) -> list[str]:
    if told is None:
        return []
    stage = f" at {told['stage']}, {told['state']}" if told["stage"] else ", which no rollout has"
    lines = [f"cluster {told['store']}: {told['name']} in ring {told['ring']}{stage}; {told['hosts']} hosts listed"]
    heard = "never heard" if told["age"] is None else f"heard {told['age']} s ago"
    lines += [f"the store does not answer, {heard}: {told['away']}"] if told["away"] else []
    lines += [f"nothing is edited: {told['stale']}"] if told["stale"] else []
    lines += [f"this host is not healthy: {told['ailing']}"] if told["ailing"] else []
    return lines + ([told["off"]] if told["off"] else [])


@click.command()
@asking
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="So many ended ones.")
def sessions(path: Path, as_json: bool, limit: int) -> None:
    """List the migrations that run, and those that ended last.

    Exit status: 0 they are listed; 2 a bug of qmpfilter; 3 the daemon does not answer, or wrong usage.
    """
    answer = ask(path, "sessions", limit=limit)
    if as_json:
        print_json(answer)
        return
    rows = [
        (one["session"], one["stage"], f"{one['bytes']['forward']:,}", one["listen"], one["connect"])
        for one in answer["running"]
    ]
    rows += [(one["session"], one["outcome"], "", one["listen"], one["connect"]) for one in answer["ended"]]
    notes = [""] * len(answer["running"]) + [one["reason"] for one in answer["ended"]]
    titles = ("session", "state", "bytes", "from", "to")
    write_out(table(titles, rows, ("bytes",), notes=notes) if rows else "no sessions\n")


@click.command()
@click.argument("session", metavar="ID")
@asking
def show(session: str, path: Path, as_json: bool) -> None:
    """Tell all about the migration ID: its report, or how far it is.

    Exit status: 0 it is told; 2 a bug of qmpfilter; 3 there is none, the daemon does not answer, or wrong usage.
    """
    answer = ask(path, "show", session=session)
    told = answer.get("report") or answer["running"]
    if as_json:
        print_json(told)
    else:
        # The states of vCPUs are long: 'qmpfilter report' tells what of them was changed.
        rest = {key: value for key, value in told.items() if key != "states"}
        write_out("".join(f"{line}\n" for line in _outline(rest)))


@click.command()
@click.argument("listen", metavar="LISTEN")
@click.argument("connect", metavar="CONNECT")
@click.option("--mode", type=click.Choice([one.value for one in Mode]), help="Another than the configuration's.")
@click.option(
    "--verdict", type=click.Choice([one.value for one in Enforcement]), help="Another than the configuration's."
)
@click.option(
    "--host",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The destination's facts, as 'qmpfilter doctor --json' printed them there.",
)
@accept_option()
@click.option("--domain", metavar="UUID", help="The guest: one that a pair: address knows as another is refused.")
@click.option("--qmp", metavar="SOCKET", help="A QMP socket of the source that nobody else uses.")
@click.option(
    "--read-vmcb12",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Over QMP, read VMCB12 from the stopped source's memory where the stream leaves something to be guessed.",
)
@asking
def start(
    listen: str,
    connect: str,
    path: Path,
    as_json: bool,
    accept: tuple[str, ...],
    host: Path | None,
    qmp: str | None,
    read_vmcb12: str,
    **other: str | None,
) -> None:
    """Let the daemon relay one migration, in a process of its own: as 'qmpfilter relay', and return when it listens.

    With port 0 in LISTEN any free one is taken, and told. With --qmp the source is followed, and VMCB12 can be read
    from its memory. LISTEN may be qmp:PATH, a source's QMP socket: it then is told to migrate, as by 'qmpfilter
    migrate', and CONNECT may be qmp:PATH too, the QMP socket of a QEMU that was started with -incoming defer. The
    command then returns when the stream has begun, or with what keeps it from beginning.

    Exit status: 0 it listens, or the migration has begun; 2 a bug of qmpfilter; 3 it cannot, the daemon does not
    answer, or wrong usage.
    """
    what: dict[str, Any] = {name: value for name, value in other.items() if value is not None}
    if host is not None:
        what["host"] = read_facts(host).to_json()
    if qmp is not None:
        what["qmp"] = str(Path(qmp).absolute())
    what["read_vmcb12"] = read_vmcb12 == "auto"
    answer = ask(path, "relay", listen=_absolute(listen), connect=_absolute(connect), accept=list(accept), **what)
    taken, at = answer["listen"].startswith(QMP), answer["listen"].removeprefix(QMP)
    begun = _has_begun(path, answer["session"]) if taken else True
    if as_json:
        print_json(answer)
    elif not taken:
        write_out(f"{answer['session']} waits at {at}\n")
    else:
        said = f"has taken over {at}" if begun else f"has not begun yet at {at}; 'qmpfilter show' tells how far it is"
        write_out(f"{answer['session']} {said}\n")


def _has_begun(path: Path, session: str) -> bool:
    """Whether the source's stream has begun to come; it is waited for.

    :raises HostError: the session ended before that; says why
    """
    late = time.monotonic() + _BEGIN_SECONDS
    while True:
        told = ask(path, "show", session=session)
        report = told.get("report")
        if (report or told["running"])["moments"].keys() - _BEFORE_STREAM:
            return True
        if report is not None:
            raise HostError(f"{session}: {report['reason']}")
        if time.monotonic() >= late:
            return False
        time.sleep(_LOOK_SECONDS)


@click.command()
@click.argument("session", metavar="ID")
@asking
def stop(session: str, path: Path, as_json: bool) -> None:
    """Ask the migration ID to end: before the commit point the guest stays at the source, after it nothing changes.

    Exit status: 0 it was asked; 2 a bug of qmpfilter; 3 it does not run, the daemon does not answer, or wrong usage.
    """
    answer = ask(path, "stop", session=session)
    if as_json:
        print_json(answer)
    else:
        write_out(f"{session} was asked to stop; 'qmpfilter show {session}' tells how it ended\n")


@click.command()
@asking
def reload(path: Path, as_json: bool) -> None:
    """Have the daemon read its configuration again. One that is wrong changes nothing.

    Exit status: 0 it was read; 2 a bug of qmpfilter; 3 it is wrong, the daemon does not answer, or wrong usage.
    """
    answer = ask(path, "reload")
    if as_json:
        print_json(answer)
    else:
        write_out(f"configuration: {', '.join(answer['config']) or 'defaults'}\n")


_for_all = click.option("--all", "everywhere", is_flag=True, help="At every host of the cluster, not only here.")


@click.command()
@asking
@_for_all
@configured
@click.option(
    "--wait", type=click.FloatRange(0, 600), default=5.0, show_default=True, help="Seconds for all hosts to say so."
)
def off(path: Path, as_json: bool, everywhere: bool, config: Path | None, wait: float) -> int:
    """Have everything pass as it is: every migration that has not edited anything yet, and every one to come.

    The switch is the file "off" beside the daemon's socket, so that it also holds without the daemon: where that
    does not answer within 2 s, this command makes the file itself. 'touch' and 'rm' do the same. With --all every
    host of the cluster makes that file; what an operator switched off at one host stays off there.

    Exit status: 0 it is off; 2 a bug of qmpfilter; 3 the file cannot be made, the cluster's store does not answer, or
    wrong usage; 4 it is off for the cluster, but not every host has said so yet.
    """
    if not everywhere:
        return _switch(path, True, as_json)
    with board(config) as records:
        records.switch_off(signed(operator()))
        return _heeded(records, True, wait, as_json)


@click.command()
@asking
@_for_all
@configured
@click.option(
    "--wait", type=click.FloatRange(0, 600), default=5.0, show_default=True, help="Seconds for all hosts to say so."
)
def on(path: Path, as_json: bool, everywhere: bool, config: Path | None, wait: float) -> int:
    """End what 'qmpfilter off' began; with --all, what 'qmpfilter off --all' began.

    Exit status: 0 it is on; 2 a bug of qmpfilter; 3 the file cannot be removed, all hosts of the cluster are off, its
    store does not answer, or wrong usage; 4 it is on for the cluster, but not every host has said so yet.
    """
    if not everywhere:
        return _switch(path, False, as_json)
    with board(config) as records:
        records.switch_on()
        return _heeded(records, False, wait, as_json)


def _switch(path: Path, off: bool, as_json: bool) -> int:
    away = ""
    try:
        # A daemon that hangs reads later what it was sent, and what is switched then may not be meant any more: it is
        # asked first whether it answers.
        ask(path, "status", _SWITCH_SECONDS)
        answer = ask(path, "off" if off else "on", _SWITCH_SECONDS)
    except DaemonAwayError:
        file = _switch_alone(path.parent, off)
        away = f"; no daemon answers at {path}, so {file} was {'made' if off else 'removed'} here"
        answer = {"off": off, "without_daemon": str(file)}
    if as_json:
        print_json(answer)
    else:
        write_out(f"{'everything passes as it is' if answer['off'] else 'migrations are filtered'}{away}\n")
    return 0


def _switch_alone(runtime: Path, off: bool) -> Path:
    """Make or remove the file, as the daemon would."""
    file = Config(runtime=runtime).kill_switch
    switch = KillSwitch(file)
    if off:
        try:
            runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"{runtime}: {error.strerror or error}") from error
        switch.take()
    elif switch.is_clusters:
        raise PolicyError(f"{file}: all hosts of the cluster were switched off: 'qmpfilter on --all' ends that")
    else:
        switch.release()
    return file


def _heeded(records: Board, off: bool, wait: float, as_json: bool) -> int:
    """Tell which hosts follow the cluster's switch, once all do or after so many seconds."""
    late = time.monotonic() + wait
    while True:
        hosts, seen = records.hosts(), records.seen()
        missing = sorted(name for name in hosts.good if name not in seen or seen[name].off is not off)
        if not missing or time.monotonic() >= late:
            break
        time.sleep(_LOOK_SECONDS)
    count = len(hosts.good)
    if as_json:
        print_json({"off": off, "hosts": count, "missing": missing, "damaged": list(hosts.damaged)})
    else:
        what = "everything passes as it is" if off else "migrations are filtered"
        said = f"{what}: {count - len(missing)} of {count} hosts say so\n"
        said += f"not yet: {', '.join(missing)}\n" if missing else ""
        write_out(said + "".join(f"{sentence}\n" for sentence in hosts.damaged))
    return _EXIT_MISSING if missing or hosts.damaged else 0


def _absolute(address: str) -> str:
    """The daemon's working directory is another."""
    if address.startswith(PAIR):
        return f"{PAIR}{_absolute(address.removeprefix(PAIR))}"
    kind, _, rest = address.partition(":")
    return f"{kind}:{Path(rest).absolute()}" if kind in ("unix", QMP.rstrip(":")) and rest else address


def _outline(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """A report as indented text: what is empty is left out."""
    lines: list[str] = []
    for key, inner in value.items():
        name = key.replace("_", " ")
        if isinstance(inner, Mapping):
            lines += _part(indent, name, _outline(inner, f"{indent}  "))
        elif isinstance(inner, list) and any(isinstance(one, Mapping) for one in inner):
            parts = [_outline(one, f"{indent}  ") for one in inner]
            lines += [line for part in parts for line in _part(indent, name, part)]
        elif isinstance(inner, list):
            lines += [f"{indent}{name}: {', '.join(map(str, inner))}"] if inner else []
        elif inner not in (None, ""):
            lines.append(f"{indent}{name}: {inner}")
    return lines


def _part(indent: str, name: str, inner: list[str]) -> list[str]:
    return [f"{indent}{name}:", *inner] if inner else []
