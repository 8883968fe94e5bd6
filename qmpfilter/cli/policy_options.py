# SPDX-License-Identifier: GPL-2.0-or-later
"""The options and exit statuses of every command that carries out one migration."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from qmpfilter.cli.facts_file import read_facts
from qmpfilter.daemon.config import places
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import LOST_ANYWAY, Enforcement, Mode, Policy
from qmpfilter.relay.address import PAIR
from qmpfilter.relay.limits import LONGEST, Waits
from qmpfilter.relay.session import Outcome
from qmpfilter.saveimage.outfile import OutputFile
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.losses import LOSS_CODES

__all__ = [
    "EXIT_IN_DOUBT",
    "EXIT_STAYED",
    "EXIT_VETOED",
    "STATUS",
    "Choices",
    "accept_option",
    "policy_options",
]

EXIT_VETOED: Final = 4
EXIT_IN_DOUBT: Final = 5
EXIT_STAYED: Final = 6
STATUS: Final[Mapping[Outcome, int]] = {
    Outcome.COMPLETED: 0,
    Outcome.SENT: 0,
    Outcome.VETOED: EXIT_VETOED,
    Outcome.IN_DOUBT: EXIT_IN_DOUBT,
    Outcome.REFUSED: EXIT_STAYED,
    Outcome.FAILED: EXIT_STAYED,
    Outcome.STOPPED: EXIT_STAYED,
    Outcome.CANCELLED: EXIT_STAYED,
}
_Command = TypeVar("_Command", bound=Callable[..., Any])
_NAMES: Final = tuple(field.name for field in fields(Waits))


@dataclass(frozen=True, slots=True)
class Choices:
    """What the options say.

    :param report: where to write what happened
    :param kill_switch: while this file exists, everything passes as it is
    :param given: fields of the policy that were said and not left at their default
    """

    policy: Policy
    waits: Waits
    report: Path | None
    kill_switch: Path
    given: frozenset[str] = frozenset()

    def write_report(self, told: Mapping[str, Any]) -> None:
        """All of the file or nothing, for its owner alone; nothing if none was asked for. The migration is over,
        and a report that cannot be written changes nothing of how it ended: that is said and no more."""
        if self.report is None:
            return
        try:
            with OutputFile(str(self.report)) as file:
                file.write(json.dumps(told, indent=1).encode() + b"\n")
                file.commit()
        except HostError as error:
            print(f"qmpfilter: the report could not be written: {error}", file=sys.stderr)


def _known(_context: click.Context, _option: click.Parameter, codes: tuple[str, ...]) -> tuple[str, ...]:
    unknown = sorted(set(codes) - LOSS_CODES)
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: the losses are {', '.join(sorted(LOSS_CODES))}")
    return codes


def accept_option(before: str = "") -> Callable[[_Command], _Command]:
    """``--accept CODE``, as often as one likes.

    :param before: stands before its help
    """
    more = ", ".join(sorted(LOSS_CODES - LOST_ANYWAY))
    return click.option(
        "--accept",
        multiple=True,
        metavar="CODE",
        callback=_known,
        help=f"{before}Accept this loss too, besides those of every migration: {more}. May be given again.",
    )


_OPTIONS: Final = (
    click.option(
        "--mode",
        type=click.Choice([mode.value for mode in Mode]),
        default=Mode.ANNEX.value,
        show_default=True,
        help="What is done to the stream.",
    ),
    click.option(
        "--verdict",
        "enforcement",
        type=click.Choice([one.value for one in Enforcement]),
        default=Enforcement.ENFORCE.value,
        show_default=True,
        help="What follows when the destination would refuse the guest's state, or lose some of it.",
    ),
    click.option(
        "--host",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="The destination's facts, as 'qmpfilter doctor --json' printed them there.",
    ),
    accept_option(),
    click.option(
        "--allow-no-return-path", is_flag=True, help="Serve a source that does not wait for the destination's word."
    ),
    click.option(
        "--deadline",
        "deadlines",
        multiple=True,
        metavar="NAME=SECONDS",
        help=f"Another deadline than the default: {', '.join(_NAMES)}. May be given again.",
    ),
    click.option(
        "--report",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write what happened there, as JSON.",
    ),
)


def policy_options(
    defaults: Waits | None = None, *, onward: Callable[[Mapping[str, Any]], str] = lambda _: ""
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command the options, and what they say as its parameter `choices`. The innermost decorator.

    :param defaults: deadlines of this command
    :param onward: told the other parameters, the address where another filter may be
    """
    usual = Waits() if defaults is None else defaults

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def chosen(
            *,
            mode: str,
            enforcement: str,
            host: Path | None,
            accept: tuple[str, ...],
            allow_no_return_path: bool,
            deadlines: tuple[str, ...],
            report: Path | None,
            **others: Any,
        ) -> int:
            policy = Policy(
                mode=Mode(mode),
                enforcement=Enforcement(enforcement),
                facts=HostFacts() if host is None else read_facts(host),
                accepted=LOST_ANYWAY | set(accept),
                without_return_path=allow_no_return_path,
                peer_tells=onward(others).startswith(PAIR),
            )
            waits = replace(usual, **_seconds(deadlines))
            switch = places().kill_switch
            if report is not None:
                # That it cannot be written is to be said while nothing has begun.
                OutputFile(str(report)).close()
            return command(choices=Choices(policy, waits, report, switch, _given()), **others)

        result: Callable[..., int] = chosen
        for option in reversed(_OPTIONS):
            result = option(result)
        return result

    return decorate


def _given() -> frozenset[str]:
    source = click.get_current_context().get_parameter_source
    return frozenset(one.name for one in fields(Policy) if source(one.name) is ParameterSource.COMMANDLINE)


def _seconds(deadlines: tuple[str, ...]) -> dict[str, float]:
    given = {}
    for text in deadlines:
        name, _, seconds = text.partition("=")
        try:
            given[name] = float(seconds)
        except ValueError:
            raise click.UsageError(f"--deadline {text}: NAME=SECONDS is needed") from None
        if name not in _NAMES or not 0 < given[name] <= LONGEST:
            names = ", ".join(_NAMES)
            raise click.UsageError(
                f"--deadline {text}: one of {names}, with more than 0 and at most {LONGEST:.0f} seconds"
            )
    return given
