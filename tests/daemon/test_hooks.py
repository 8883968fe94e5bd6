# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt's hook is answered, without a libvirt."""

from __future__ import annotations

import asyncio
import socket
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
from qmpfilter.daemon.reports import Reports, new_name
from qmpfilter.daemon.roster import Roster
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import Mode, Policy
from qmpfilter.libvirt import arrival
from qmpfilter.libvirt.arrival import Arrival
from qmpfilter.libvirt.domain import DomainXml
from qmpfilter.libvirt.incoming import Incoming
from qmpfilter.relay.address import TcpAddress
from qmpfilter.verdict.facts import HostFacts

XML = "<domain>\n  <name>g</name>\n  <uuid>0a7f</uuid>\n</domain>\n"
NONSENSE = "<metadata><p:policy xmlns:p='urn:qmpfilter:policy:1' mode='fast'/></metadata>\n</domain>"


@pytest.fixture
def roster(tmp_path: Path) -> Roster:
    return Roster(Config(runtime=tmp_path, state=tmp_path / "state"), Reports(tmp_path / "state/sessions"))


def ask(
    roster: Roster, operation: str, xml: str = XML, domain: str = "g", redirects: Redirects | None = None
) -> dict[str, Any]:
    name, sub = operation.split()
    request = Request({"operation": name, "sub": sub, "extra": "-", "domain": domain, "xml": xml})
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
    with socket.create_server(("127.0.0.1", 0)) as ours:
        monkeypatch.setattr(ingress, "open_listener", lambda: ours)
        answer = ask(roster, "started begin", redirects=Redirects(refuse))
        assert ours.fileno() == -1
    assert answer == ({"veto": "nft is missing"} if required else {})
    assert "nft is missing" in caplog.text
    assert not roster.sessions


@pytest.mark.parametrize(("host", "is_taken"), [(socket.gethostname(), True), ("elsewhere", False)])
def test_a_session_has_the_promised_name_only_where_it_was_promised(
    roster: Roster, host: str, is_taken: bool
) -> None:
    name = new_name()
    coming = Arrival(session=name, at="2026-01-01T00:00:00+00:00", host=host, version="1", records="/r")
    domain = DomainXml(DomainXml(XML).with_element(coming.element()))
    assert Hooks(roster, lambda *_: None, Redirects(pytest.fail))._session_of(domain) == (name if is_taken else "")


def test_other_operations_are_an_error(roster: Roster) -> None:
    with pytest.raises(HostError, match="no hook is run for prepare begin"):
        ask(roster, "prepare begin")
