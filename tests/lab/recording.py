# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a scenario on a booted host and brings back what was recorded."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from .emulator import EmulatedHost
from .guest.build import build_guest
from .scenarios import Migration, Scenario

MIGRATION_SECONDS = 400.0
SAVE_SECONDS = 400.0
_TRUTH_SYMBOLS = (
    *("contexts", "l1_pml4", "l2_pml4", "npt_pml4", "pae_pdpts", "legacy_directory", "vmcb12_pages"),
    *("nothing_injected",),
)


@dataclass(frozen=True)
class Recording:
    """What one scenario left.

    ``files`` are the recorded channels by role: ``stream``, ``return`` where the source expected a return path,
    ``multifd0`` and so on, or ``save`` for a save image.  ``truth`` is what QEMU said of the stopped machine (see
    inhost.truth) and, under ``guest``, the guest's command line and the addresses of its symbols.  ``machine`` is
    the versioned machine type.
    """

    scenario: Scenario
    files: dict[str, bytes]
    truth: dict[str, Any]
    machine: str


def record(host: EmulatedHost, scenario: Scenario) -> Recording:
    """Records a scenario on the host; raises JobFailed with what went wrong there."""
    guest = build_guest()
    spec: dict[str, Any] = dataclasses.asdict(scenario) | {"symbols": guest.symbols, "guest": scenario.guest}
    if isinstance(scenario, Migration):
        module, seconds = "inhost.migration", MIGRATION_SECONDS
        spec["arguments"] = scenario.arguments()
    else:
        module, seconds = "inhost.saveimage", SAVE_SECONDS
    files = {"l1.elf": guest.elf, "spec.json": json.dumps(spec).encode()}
    left = dict(host.run(["python3", "-m", module, "spec.json"], files, seconds).files)
    facts = json.loads(left.pop("facts.json"))
    truth = json.loads(left.pop("truth.json"))
    truth["guest"] = {
        "command line": scenario.guest,
        "symbols": {name: f"{guest.symbols[name]:016x}" for name in _TRUTH_SYMBOLS},
    }
    return Recording(scenario, left, truth, facts["machine"])
