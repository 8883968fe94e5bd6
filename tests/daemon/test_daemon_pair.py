# SPDX-License-Identifier: GPL-2.0-or-later
"""Two sessions as a pair, by TLS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmpfilter.errors import HostError
from qmpfilter.verdict.facts import HostFacts
from tests.helpers.daemon import DaemonProcess
from tests.helpers.migration import SHUT_OK, STREAM, Ends
from tests.helpers.pki import Authority

pytestmark = pytest.mark.lab

FACTS = json.loads(json.dumps(HostFacts(formats=("legacy", "annex")).to_json()))
DOMAIN = "8d7a1d9f-6f4a-4a3c-9d7e-1f2a3b4c5d6e"


def test_a_migration(tmp_path: Path) -> None:
    pki = Authority(tmp_path / "authority").host(tmp_path / "pki")
    config = f'[pair]\nencryption = "always"\npki = "{pki}"\n'
    with DaemonProcess(tmp_path, config) as daemon, Ends(tmp_path / "incoming") as ends:
        there = daemon.ask("relay", listen="pair:tcp:127.0.0.1:0", connect=ends.connect, host=FACTS, domain=DOMAIN)
        assert there["listen"].startswith("pair:tcp:127.0.0.1:")
        assert not there["listen"].endswith(":0")
        here = daemon.ask("relay", listen="tcp:127.0.0.1:0", connect=there["listen"], domain=DOMAIN.upper())
        ends.dial(here["listen"])
        ends.send(STREAM)
        ends.accept()
        ends.arrive(len(STREAM))
        assert ends.finish() == SHUT_OK
        reports = [daemon.report(one["session"]) for one in (here, there)]
    assert [report["outcome"] for report in reports] == ["completed", "completed"]
    assert [report["edited_vcpus"] for report in reports] == [1, 0]
    assert reports[0]["pair"]["destination"]["tls"]["subject"] == "O=qmpfilter,CN=server"
    assert reports[1]["pair"]["source"]["tls"]["subject"] == "O=qmpfilter,CN=client"


def test_without_certificates_nothing_is_begun(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, f'[pair]\npki = "{tmp_path}"\n') as daemon:
        for ends in (
            {"listen": "pair:tcp:0.0.0.0:0", "connect": "unix:/there"},
            {"listen": "unix:/here", "connect": "pair:tcp:192.0.2.1:49500"},
        ):
            with pytest.raises(HostError, match=r"TLS between filters needs .*cacert\.pem: No such file"):
                daemon.ask("relay", **ends)
        assert daemon.ask("sessions")["running"] == []
