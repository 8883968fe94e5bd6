# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with a live L2 through the relay, on every kernel: its state arrives as asked for, and L2 goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest

from qmpfilter.svm import annex
from tests.helpers.vcpus import vcpus_in_l2
from tests.lab.emulator import EmulatedHost
from tests.lab.guest.build import build_guest
from tests.lab.package import run_python
from tests.lab.scenarios import Migration

pytestmark = pytest.mark.lab

SECONDS = 900.0
NO_NESTING = {"schema": "qmpfilter.host/1", "kvm": {"parameters": {"kvm_amd": {"nested": "0"}}}}


class Way(NamedTuple):
    """How the guest travels, and how often."""

    name: str
    command: str = "relay"
    options: Sequence[str] = ()
    capabilities: Sequence[str] = ()
    parameters: Mapping[str, Any] = {}
    vcpus: str = "2n"
    turns: int = 1
    stays: bool = False


ANNEX = Way("annex", turns=2)
WAYS = (
    ANNEX,
    Way("observe", options=("--mode", "observe")),
    Way("postcopy", capabilities=("postcopy-ram",), parameters={"max_bandwidth": 2 << 20}),
    Way("multifd", capabilities=("multifd",), parameters={"multifd_channels": 2}),
    Way("xbzrle", capabilities=("xbzrle", "auto-converge")),
    Way("veto", options=("--host", "nowhere.json"), stays=True),
    Way("migrate", "migrate"),
)


def travel(host: EmulatedHost, way: Way) -> dict[str, bytes]:
    guest = build_guest()
    spec = {
        "arguments": Migration(way.name, way.vcpus).arguments(),
        "symbols": guest.symbols,
        "vcpus": way.vcpus,
        "capabilities": way.capabilities,
        "parameters": way.parameters,
        "command": way.command,
        "options": way.options,
        "turns": way.turns,
        "stays": way.stays,
    }
    files = {
        "l1.elf": guest.elf,
        "spec.json": json.dumps(spec).encode(),
        "nowhere.json": json.dumps(NO_NESTING).encode(),
    }
    return run_python(host, ["-m", "inhost.relayed", "spec.json"], files, SECONDS).files


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_way(emulated_host: EmulatedHost, way: Way) -> None:
    left = travel(emulated_host, way)
    for turn in range(1, way.turns + 1):
        report = json.loads(left[f"report{turn}.json"])
        if way.stays:
            assert report["outcome"] == "vetoed"
            assert "vCPU 0" in report["reason"]
            continue
        assert (report["outcome"], report["reason"], report["warnings"]) == ("completed", "", [])
        for vcpu in vcpus_in_l2(left[f"stream{turn}"]):
            assert vcpu.nested is not None
            assert vcpu.nested.page is not None
            flags = {"run_pending": vcpu.nested.run_pending, "gif": vcpu.nested.gif}
            told = annex.decode(vcpu.nested.page, vcpu.nested.vmcb_pa, **flags)
            assert (told is not None) == (way.name != "observe")
        edited = [vcpu for vcpu in report["vcpus"] if vcpu["outcome"] == "converted"]
        assert edited
        assert report["edited_vcpus"] == (0 if way.name == "observe" else len(edited))
        if way.command == "migrate":
            # VMCB12s are read from the source's memory, so that nothing of them has to be guessed.
            assert report["vmcb12_pages_read"] == len(edited)
            assert (report["source"]["migration"]["status"], report["source"]["guest"]) == (
                "completed",
                "postmigrate",
            )
            assert report["source"]["problems"] == []
