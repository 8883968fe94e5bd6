# SPDX-License-Identifier: GPL-2.0-or-later
"""What a request of the control socket asks for, of one migration: between which addresses, for whom, how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from qmpfilter.cluster.rollout import domain_uuid
from qmpfilter.daemon.config import Config, checked
from qmpfilter.daemon.control import Request
from qmpfilter.daemon.roster import Wanted
from qmpfilter.doctor.gather import gather
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import Enforcement, Mode, Policy
from qmpfilter.relay.address import (
    PAIR,
    QMP,
    Listening,
    PairAddress,
    TcpAddress,
    UnixAddress,
    parse_destination,
    parse_listening,
)
from qmpfilter.relay.pair import check_certificates
from qmpfilter.verdict.facts import HostFacts

__all__ = ["Ends", "Subject", "host_of", "read_ends", "read_wanted"]


class Subject(NamedTuple):
    """Which migration the cluster is asked about.

    :param destination: name or address of the host
    :param domain: its uuid, None if that was not told
    :param asked: the mode that was asked for, None for the configuration's
    :param wished: the mode of the domain's own policy
    """

    destination: str
    domain: str | None
    asked: Mode | None
    wished: Mode | None

    @classmethod
    def of(cls, request: Request, connect: str) -> Subject:
        """:raises HostError: the request is wrong"""
        modes = [one.value for one in Mode]
        destination, domain = request.text("destination", ""), request.text("domain", "")
        asked, wished = request.choice("mode", modes, ""), request.choice("domain_mode", modes, "")
        return cls(
            destination or host_of(connect),
            domain_uuid(domain) if domain else None,
            Mode(asked) if asked else None,
            Mode(wished) if wished else None,
        )


def host_of(connect: str) -> str:
    """The host that an address names, empty if it names none."""
    try:
        address = parse_destination(connect)
    except HostError:
        return ""
    inner = address.inner if isinstance(address, PairAddress) else address
    return inner.host if isinstance(inner, TcpAddress) else ""


class Ends(NamedTuple):
    """Between what it goes.

    :param listen: where the source comes, None if it is told so over QMP
    :param connect: where it goes
    :param qmp: the source's QMP socket
    """

    listen: Listening | None
    connect: str
    qmp: str


def read_ends(request: Request) -> Ends:
    """:raises HostError: the request is wrong"""
    came, goes, qmp = request.text("listen"), request.text("connect"), request.text("qmp", "")
    listen: Listening | None = None
    if came.startswith(QMP):
        if qmp:
            raise HostError("qmp: the source's QMP socket is told by listen already")
        qmp = came.removeprefix(QMP)
    else:
        listen = parse_listening(came)
    connect = None
    if goes.startswith(QMP) and listen is None:
        _check_absolute(goes, goes.removeprefix(QMP))
    else:
        connect = parse_destination(goes)
    for address in (listen, connect):
        inner = address.inner if isinstance(address, PairAddress) else address
        if isinstance(inner, UnixAddress):
            _check_absolute(str(address), inner.path)
    if qmp:
        _check_absolute(qmp, qmp)
    return Ends(listen, goes, qmp)


def _check_absolute(address: str, path: str) -> None:
    if not Path(path).is_absolute():
        raise HostError(f"{address}: an absolute path was expected")


def read_wanted(
    request: Request, config: Config, ends: Ends, domain: str, mode: Mode, known: HostFacts | None
) -> Wanted:
    """A session.

    :param domain: the guest's uuid, empty where it is not known
    :param known: what the cluster knows of the destination, None if nothing
    :raises HostError: the request is wrong, or this host lacks certificates that it takes
    :raises PolicyError: it contradicts itself
    """
    policy = config.policy
    facts = _facts(request, known or policy.facts, ends.listen)
    pairing = replace(config.pairing, domain=domain)
    onward = None if ends.connect.startswith(QMP) else parse_destination(ends.connect)
    check_certificates(ends.listen, onward, pairing)
    deadlines = request.object("deadlines") or {}
    wanted = Wanted(
        ends.listen,
        ends.connect,
        Policy(
            mode=mode,
            enforcement=Enforcement(
                request.choice("verdict", [one.value for one in Enforcement], policy.enforcement.value)
            ),
            facts=facts,
            accepted=policy.accepted | set(request.texts("accept")),
            without_return_path=request.flag("allow_no_return_path", policy.without_return_path),
            peer_tells=ends.connect.startswith(PAIR),
        ),
        replace(
            config.waits,
            **{name: checked("the request", f"deadlines.{name}", value) for name, value in deadlines.items()},
        ),
        request.peer,
        ends.qmp,
        request.flag("read_vmcb12", True),
        uuid=domain,
        pairing=pairing,
    )
    request.end()
    return wanted


def _facts(request: Request, configured: HostFacts, listen: Listening | None) -> HostFacts:
    """The destination's, as far as they are known: where the other filter of a pair comes, it is this host."""
    given = request.object("host")
    facts = configured if given is None else HostFacts.from_json(json.dumps(given))
    return gather().facts if isinstance(listen, PairAddress) and facts == HostFacts() else facts
