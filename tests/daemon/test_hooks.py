# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt's hook is answered, without a libvirt."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qmpfilter.daemon import hooks, ingress
from qmpfilter.daemon.config import Config, Ingress
from qmpfilter.daemon.control import Request
from qmpfilter.daemon.hooks import Hooks
from qmpfilter.daemon.redirects import Redirects
from qmpfilter.daemon.reports import Reports
from qmpfilter.daemon.roster import Roster, Wanted
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import Mode, Policy
from qmpfilter.libvirt import arrival
from qmpfilter.libvirt.arrival import Arrival
from qmpfilter.libvirt.domain import DomainXml
from qmpfilter.libvirt.incoming import Incoming
from qmpfilter.relay.address import TcpAddress, UnixAddress
from qmpfilter.verdict.facts import HostFacts

XML = "<domain>\n  <name>g</name>\n  <uuid>0a7f</uuid>\n</domain>\n"
NONSENSE = "<metadata><p:policy xmlns:p='urn:qmpfilter:policy:1' mode='fast'/></metadata>\n</domain>"


@pytest.fixture
def roster(tmp_path: Path) -> Roster:
    return Roster(Config(runtime=tmp_path, state=tmp_path / "state"), Reports(tmp_path / "state/sessions"))


def ask(
    roster: Roster,
    operation: str,
    xml: str = XML,
    domain: str = "g",
    redirects: Redirects | None = None,
    is_waited_for: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """What a daemon answers that was started for this."""
    name, sub = operation.split()
    values = {"operation": name, "sub": sub, "extra": "-", "domain": domain, "xml": xml}
    request = Request(values, "", is_waited_for)
    return asyncio.run(Hooks(roster, lambda *_: None, redirects or Redirects(pytest.fail)).answer(request))


def told(xml: str) -> Arrival:
    found = Arrival.of(DomainXml(xml).attributes(arrival.NAMESPACE) or {})
    assert found is not None
    return found


def test_what_arrives_is_named_in_its_metadata(roster: Roster) -> None:
    found = told(ask(roster, "migrate begin")["xml"])
    assert found.host == socket.gethostname()
    assert found.records == str(roster.config.state / "records" / found.session)
    assert roster.is_free(found.session)


def test_this_host_is_looked_at_anew_for_each_arrival(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    releases = iter(("6.1.1", "6.12.1"))
    monkeypatch.setattr(hooks, "gather", lambda: SimpleNamespace(facts=HostFacts(kernel_release=next(releases))))
    request = {"operation": "migrate", "sub": "begin", "extra": "-", "domain": "g", "xml": XML}

    async def arrive_twice() -> list[str | None]:
        asked = Hooks(roster, lambda *_: None, Redirects(pytest.fail))
        found = []
        for _ in range(2):
            await asked.answer(Request(dict(request)))
            found.append((await asked._known()).kernel_release)
        return found

    assert asyncio.run(arrive_twice()) == ["6.1.1", "6.12.1"]


def test_a_second_arrival_takes_the_place_of_the_first(roster: Roster) -> None:
    once = ask(roster, "migrate begin")["xml"]
    twice = ask(roster, "migrate begin", once)["xml"]
    assert told(twice).session != told(once).session
    assert twice.count(arrival.NAMESPACE) == 1


@pytest.mark.parametrize("operation", ["migrate begin", "restore begin"])
def test_a_policy_that_makes_no_sense_is_vetoed_but_not_with_the_switch_on(roster: Roster, operation: str) -> None:
    xml = XML.replace("</domain>", NONSENSE)
    assert "cannot be understood" in ask(roster, operation, xml)["veto"]
    roster.config.kill_switch.touch()
    assert ask(roster, operation, xml) == {}


@pytest.mark.parametrize("required", [False, True])
def test_an_image_that_cannot_be_looked_at_is_restored(roster: Roster, required: bool) -> None:
    roster.config = replace(roster.config, ingress=Ingress(required=required))
    assert ask(roster, "restore begin") == {}


@pytest.mark.parametrize(("required", "operation", "answer"), [
    (False, "migrate begin", set()), (True, "migrate begin", {"veto"}), (True, "release end", set()),
])  # fmt: skip
@pytest.mark.parametrize(("xml", "domain"), [("", "g"), ("<domain>", "g"), (XML, "another")])
def test_xml_that_makes_no_sense(
    roster: Roster, required: bool, operation: str, answer: set[str], xml: str, domain: str
) -> None:
    roster.config = replace(roster.config, ingress=Ingress(required=required))
    assert ask(roster, operation, xml, domain).keys() == answer


@pytest.mark.parametrize(
    ("configured", "asked", "allowed", "mode"),
    [
        ("native", None, None, "annex"),
        ("annex", "native", None, "annex"),
        ("observe", "native", None, "annex"),
        ("observe", "legacy", "native", "annex"),
        ("native", "native", "observe", "observe"),
        ("annex", "observe", None, "observe"),
        ("legacy", None, None, "legacy"),
        ("annex", "annex", "off", "off"),
    ],
)
def test_this_hosts_qemu_never_gets_native_svm2(
    roster: Roster, configured: str, asked: str | None, allowed: str | None, mode: str
) -> None:
    roster.config = replace(roster.config, policy=Policy(mode=Mode(configured), peer_tells=True))
    wanted = f"<metadata><p:policy xmlns:p='urn:qmpfilter:policy:1' mode='{asked}'/></metadata>\n</domain>"
    domain = DomainXml(XML if asked is None else XML.replace("</domain>", wanted))
    hooks = Hooks(roster, lambda *_: None if allowed is None else Mode(allowed), Redirects(pytest.fail))
    assert hooks._policy(domain, HostFacts()).mode is Mode(mode)


@pytest.mark.parametrize("operation", ["started begin", "stopped end", "release end"])
def test_a_domain_that_nobody_waits_for(roster: Roster, operation: str) -> None:
    assert ask(roster, operation) == {}


@pytest.mark.parametrize("required", [False, True])
def test_where_rules_cannot_be_set_nothing_is_left(
    roster: Roster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, required: bool
) -> None:
    def refuse(_: str) -> None:
        raise HostError("nft is missing")

    roster.config = replace(roster.config, ingress=Ingress(required=required, nft=True))
    incoming = Incoming(1, (TcpAddress("0.0.0.0", 49152),))
    monkeypatch.setattr(hooks, "find_incoming", lambda *_: incoming)
    ask(roster, "migrate begin")
    with socket.create_server(("127.0.0.1", 0)) as ours:
        monkeypatch.setattr(ingress, "open_listener", lambda: ours)
        answer = ask(roster, "started begin", redirects=Redirects(refuse))
        assert ours.fileno() == -1
    assert answer == ({"veto": "nft is missing"} if required else {})
    assert "nft is missing" in caplog.text
    assert not roster.sessions


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """One that waits at a path."""
    address = UnixAddress(str(tmp_path / "m.sock"))
    monkeypatch.setattr(hooks, "find_incoming", lambda *_: Incoming(1, (address,)))
    with address.listen() as listener:
        yield listener


def leads_to(path: Path, listener: socket.socket) -> bool:
    """Whoever connects there comes to this one."""
    listener.setblocking(False)
    with socket.socket(socket.AF_UNIX) as source:
        source.connect(str(path))
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True


class Sessions:
    """Stands for workers."""

    def __init__(self, roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.stopped: dict[str, str] = {}
        monkeypatch.setattr(roster, "start", self._start)
        monkeypatch.setattr(roster, "stop", self.stopped.__setitem__)

    async def _start(self, wanted: Wanted) -> SimpleNamespace:
        self.begun.append(wanted.session)
        return SimpleNamespace(origin=SimpleNamespace(session=wanted.session))


def test_an_announced_guest_is_led_here_also_over_a_restart(
    roster: Roster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qemu: socket.socket
) -> None:
    sessions = Sessions(roster, monkeypatch)
    promised = told(ask(roster, "migrate begin")["xml"]).session
    assert ask(roster, "started begin") == {}
    assert sessions.begun == [promised]
    assert (tmp_path / "m.sock").is_socket()
    assert leads_to(tmp_path / "m.sock.qmpfilter", qemu)


@pytest.mark.parametrize("before", [(), ("migrate begin", "restore begin"), ("migrate begin", "release end"),
                                    ("migrate begin", "stopped end")], ids=" ".join)  # fmt: skip
@pytest.mark.parametrize("required", [False, True])
def test_nothing_is_put_before_a_guest_that_is_not_announced(
    roster: Roster, tmp_path: Path, qemu: socket.socket, caplog: pytest.LogCaptureFixture, required: bool,
    before: tuple[str, ...],
) -> None:  # fmt: skip
    roster.config = replace(roster.config, ingress=Ingress(required=required))
    for operation in before:
        ask(roster, operation)
    assert ask(roster, "started begin") == {}
    assert leads_to(tmp_path / "m.sock", qemu)
    assert f"nothing is put before unix:{tmp_path / 'm.sock'}" in caplog.text


def test_a_guest_whose_hook_has_given_up_is_not_announced(
    roster: Roster, tmp_path: Path, qemu: socket.socket
) -> None:
    assert ask(roster, "migrate begin", is_waited_for=lambda: False) == {}
    assert ask(roster, "started begin") == {}
    assert leads_to(tmp_path / "m.sock", qemu)


FAILURES = (HostError("may not be looked into"), OSError(24, "Too many open files"), KeyError("a bug"))


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("operation", "announced", "required", "off", "vetoed"),
    [
        ("started begin", True, True, False, True),
        ("started begin", True, False, False, False),
        ("started begin", True, True, True, False),
        ("started begin", False, True, False, False),
        ("restore begin", False, True, False, False),
        ("migrate begin", False, True, False, True),
        ("migrate begin", False, False, False, False),
    ],
)
def test_only_what_arrives_is_refused_for_want_of_the_filter_and_not_with_the_switch_on(
    roster: Roster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception,
    operation: str, announced: bool, required: bool, off: bool, vetoed: bool,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    roster.config = replace(roster.config, ingress=Ingress(required=required))
    if off:
        roster.config.kill_switch.touch()
    if announced:
        ask(roster, "migrate begin")
    for name in ("find_incoming", "check_image", "new_name"):
        monkeypatch.setattr(hooks, name, fail)
    answer = ask(roster, operation)
    assert answer.keys() == ({"veto"} if vetoed else set())
    assert str(error) in answer.get("veto", caplog.text)
    assert ("Traceback" in caplog.text) != isinstance(error, HostError)


@pytest.mark.parametrize("answers", [(False,), (True, False)], ids=["before the front", "with the session"])
def test_where_the_hook_has_given_up_nothing_is_left(
    roster: Roster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qemu: socket.socket, answers: tuple[bool, ...]
) -> None:
    sessions = Sessions(roster, monkeypatch)
    ask(roster, "migrate begin")
    waits = iter(answers)
    assert ask(roster, "started begin", is_waited_for=lambda: next(waits)) == {}
    assert leads_to(tmp_path / "m.sock", qemu)
    assert not (tmp_path / "m.sock.qmpfilter").exists()
    assert sessions.stopped == dict.fromkeys(sessions.begun, "libvirt's hook did not wait for it")
    assert len(sessions.begun) == len(answers) - 1


def test_a_session_that_ends_before_it_began_clears_nothing_of_qemus(
    roster: Roster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qemu: socket.socket
) -> None:
    path = tmp_path / "m.sock"

    async def act() -> None:
        asked = Hooks(roster, lambda *_: None, Redirects(pytest.fail))

        async def start(wanted: Wanted) -> None:
            asked.ended({"session": wanted.session, "listen": f"unix:{path}", "connect": f"unix:{path}.qmpfilter"})
            raise HostError("its worker died")

        monkeypatch.setattr(roster, "start", start)
        for operation in ("migrate", "started"):
            await asked.answer(Request({"operation": operation, "sub": "begin", "domain": "g", "xml": XML}))

    asyncio.run(act())
    assert leads_to(path, qemu)


def test_other_operations_are_an_error(roster: Roster) -> None:
    with pytest.raises(HostError, match="no hook is run for prepare begin"):
        ask(roster, "prepare begin")
