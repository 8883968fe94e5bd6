# SPDX-License-Identifier: GPL-2.0-or-later
"""Lets a recorded stream arrive on a host, and the guest go on there."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.fixtures import Fixture

from .emulator import EmulatedHost
from .guest.build import build_guest
from .inhost.machine import PROGRESS_SECONDS

SECONDS = 240.0


def arrive(
    host: EmulatedHost, source: Fixture, stream: bytes, patience: float = PROGRESS_SECONDS
) -> tuple[dict[str, Any], bytes]:
    """The guest's progress on the host, and the stream that the host sends of it before it runs.

    :param source: the recording that the stream was made of
    :param patience: seconds in which every vCPU has to print a round

    Raises JobFailed if it does not load, if a register was corrupted, or if the guest does not go on.
    """
    truth = source.truth()["guest"]
    symbols = {name: int(value, 16) for name, value in truth["symbols"].items()}
    letters = truth["command line"].partition("vcpus=")[2].split()[0]
    spec = {"arguments": source.facts["command line"], "vcpus": letters, "symbols": symbols, "patience": patience}
    files = {"l1.elf": build_guest().elf, "stream": stream, "spec.json": json.dumps(spec).encode()}
    left = host.run(["python3", "-m", "inhost.arrival", "spec.json"], files, SECONDS).files
    progress: dict[str, Any] = json.loads(left["progress.json"])
    return progress, left["again"]
