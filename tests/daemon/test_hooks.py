# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt's hook is told, without a libvirt."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.daemon.config import Config, Ingress
from qmpfilter.daemon.control import Request
from qmpfilter.daemon.hooks import Hooks
from qmpfilter.daemon.reports import Reports, is_name
from qmpfilter.daemon.roster import Roster
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import Mode
from qmpfilter.libvirt.arrival import NAMESPACE, Arrival
from qmpfilter.libvirt.domain import DomainXml, Element
from qmpfilter.libvirt.metadata import NAMESPACE as POLICY

XML = "<domain>\n  <name>guest</name>\n  <uuid>0a-1b</uuid>\n</domain>\n"


def policy(**attributes: str) -> str:
    return DomainXml(XML).with_element(Element(POLICY, "q", "policy", attributes))


class Asked:
    """Hooks of a daemon that has no sessions, asked once each."""

    def __init__(self, directory: Path, *, required: bool = False, allowed: Mode | None = None) -> None:
        self.config = Config(runtime=directory, state=directory, ingress=Ingress(required=required))
        self._allowed = allowed

    def answer(self, operation: str, sub: str = "begin", **given: Any) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            hooks = Hooks(Roster(self.config, Reports(self.config.state / "sessions")), lambda *_: self._allowed)
            values = {"operation": operation, "sub": sub, "extra": "-", "domain": "guest", "xml": XML, **given}
            return await hooks.answer(Request(values, "somebody"))

        return asyncio.run(ask())


def test_a_domain_that_comes_is_told_how(tmp_path: Path) -> None:
    answer = Asked(tmp_path).answer("migrate")
    told = Arrival.of(DomainXml(answer["xml"]).attributes(NAMESPACE) or {})
    assert told is not None
    assert is_name(told.session)
    assert told.records == str(tmp_path / "records" / told.session)
    assert DomainXml(answer["xml"]).without_element(NAMESPACE).replace("  <metadata>\n  </metadata>\n", "") == XML


def test_with_the_switch_on_nothing_is_changed(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    asked.config.kill_switch.touch()
    assert asked.answer("migrate") == {}
    assert asked.answer("restore") == {}


@pytest.mark.parametrize("operation", ["migrate", "restore"])
def test_a_policy_that_makes_no_sense_is_a_veto(tmp_path: Path, operation: str) -> None:
    answer = Asked(tmp_path).answer(operation, xml=policy(mode="fast"))
    assert "cannot be understood" in answer["veto"]


@pytest.mark.parametrize("operation", ["started", "stopped"])
def test_a_domain_without_a_qemu_that_waits_is_none_of_ours(tmp_path: Path, operation: str) -> None:
    assert Asked(tmp_path).answer(operation, "begin" if operation == "started" else "end") == {}


@pytest.mark.parametrize("required", [False, True])
def test_what_cannot_be_looked_at_is_refused_only_where_that_is_required(tmp_path: Path, required: bool) -> None:
    for given in ({"xml": "no XML"}, {"domain": "another"}):
        answer = Asked(tmp_path, required=required).answer("migrate", **given)
        assert answer.keys() == ({"veto"} if required else set())
    # No libvirt of this machine has an image open.
    assert Asked(tmp_path, required=required).answer("restore").keys() == ({"veto"} if required else set())
    assert Asked(tmp_path, required=required).answer("stopped", "end", xml="no XML") == {}


@pytest.mark.parametrize("given", [{"operation": "prepare"}, {"domain": 5}, {"more": "x"}])
def test_what_is_no_hook_is_an_error(tmp_path: Path, given: dict[str, Any]) -> None:
    values = {"operation": "migrate", "sub": "begin", "domain": "guest", "xml": XML, **given}
    hooks = Hooks(Roster(Config(runtime=tmp_path, state=tmp_path), Reports(tmp_path / "s")), lambda *_: None)
    with pytest.raises(HostError):
        asyncio.run(hooks.answer(Request(values)))
