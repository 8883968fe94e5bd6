# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports: of a recorded stream between two QEMUs that are made up, and of a guest that names things badly."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import tempfile
from pathlib import Path
from typing import Any, Final

from qmpfilter.filter.policy import Policy
from qmpfilter.qmp.destination import Destination
from qmpfilter.qmp.migration import Migration
from qmpfilter.qmp.source import Source
from qmpfilter.relay.limits import Waits
from tests.qmp.fake import FakeQemu

__all__ = ["HOSTILE", "SESSION", "hostile", "sample"]

SESSION: Final = "20260301T142530-9f3a01bc"
HOSTILE: Final = "\"'><script>document.title = 'taken over'</script><img src=x onerror=alert(1)>\x1b[2J\u202e&amp;"


@functools.cache
def _completed() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        ends = Path(directory) / "source", Path(directory) / "destination"
        with FakeQemu(ends[0]), FakeQemu(ends[1], incoming=True):
            source, destination = Source(str(ends[0])), Destination(str(ends[1]))
            migration = Migration(source, destination, Policy(), Waits(), read_memory=False)
            asyncio.run(migration.run())
            told: dict[str, Any] = json.loads(json.dumps(migration.report()))
            return told


def sample() -> dict[str, Any]:
    """One that completed, as a daemon writes it down; the caller's own."""
    told: dict[str, Any] = {
        "session": SESSION,
        "listen": "tcp:0.0.0.0:40351",
        "connect": "tcp:newhost:49152",
        "asked_by": "user 0",
    }
    told["records"] = [f"/var/lib/qmpfilter/records/{SESSION}/vcpu{index}.svm2" for index in (0, 3)]
    return told | copy.deepcopy(_completed())


def hostile() -> dict[str, Any]:
    """The sample with each of its texts replaced, and each name in its vCPUs' states; but for the session's."""
    told: dict[str, Any] = _spoilt(sample())
    for state in told["states"]:
        state["before"][HOSTILE] = {HOSTILE: HOSTILE}
    return told | {"session": SESSION, "moments": sample()["moments"]}


def _spoilt(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _spoilt(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_spoilt(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value
