# SPDX-License-Identifier: GPL-2.0-or-later
"""Records one migration of the L1 guest: ``python3 -m inhost.migration SPEC.json``.

The specification's fields are those of ``Migration`` in tests/lab/scenarios.py, its command line, and the
symbols of the guest.  Leaves the recorded channels, ``truth.json`` and ``facts.json`` in the directory ``out``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct
from typing import Any

from .machine import Machine
from .modes import Untimely
from .relay import Channel, RecordingRelay
from .truth import read_truth
from .waiting import wait_until

MIGRATION_SECONDS = 60.0
ATTEMPTS = 20
NMI_SECONDS = 1.0  # for all vCPUs to have run
LENIENT_DOWNTIME_MS = 60_000
RETURN_MESSAGE = Struct(">HH")  # type and length of what follows
REQUESTS_OF_PAGES = (3, 4)  # with and without the name of the block
NESTED_STATE = b"\x05\x10cpu/nested_state"
FLAGS = Struct(">H")
RUN_PENDING = 2  # KVM_STATE_NESTED_RUN_PENDING


class Recorder:
    """One attempt at a recording."""

    def __init__(self, spec: dict[str, Any], directory: Path) -> None:
        self._spec = spec
        self._directory = directory
        self._symbols: dict[str, int] = spec["symbols"]
        self._modes: str = spec["vcpus"]
        self._runs = [index for index, mode in enumerate(self._modes) if mode != "-"]

    def record(self, out: Path) -> None:
        """Migrates, reads the truth, checks the destination, and moves the result to ``out``.

        Raises Untimely, Corruption, or what went wrong.
        """
        with contextlib.ExitStack() as machines:
            source = machines.enter_context(self._machine("source"))
            source.wait_for_rounds(dict.fromkeys(self._runs, 0))
            destination: Machine | None = None
            incoming = self._directory / "incoming"
            if self._spec["destination"]:
                destination = machines.enter_context(self._machine("destination", incoming=True))
                destination.configure(self._spec["capabilities"], self._destination_parameters())
                destination.qmp.command("migrate-incoming", uri=f"unix:{incoming}")
            truth, channels = self._migrate_through_relay(source, incoming if destination else None)
            if destination:
                printed = source.progress().rounds
                destination.wait_for_rounds({index: printed[index][-1] for index in self._runs})
            facts = {"machine": source.machine_type()}
        for channel in channels:
            role = channel.role()
            shutil.copy(channel.forward, out / role)
            if channel.backward.stat().st_size:
                shutil.copy(channel.backward, out / ("return" if role == "stream" else f"{role}-return"))
        (out / "truth.json").write_text(json.dumps(truth))
        (out / "facts.json").write_text(json.dumps(facts))

    def _migrate_through_relay(self, source: Machine, incoming: Path | None) -> tuple[dict[str, Any], list[Channel]]:
        """The truth and what the relay recorded; raises Untimely.

        Then the machine is of no more use: were it to run on, KVM would give L2 the DR7 that QEMU has read, L1's.
        """
        listen = self._directory / "relay"
        relay = RecordingRelay(listen, incoming, self._directory)
        self._migrate(source, f"unix:{listen}")
        channels = relay.finish(MIGRATION_SECONDS)
        truth = read_truth(source.qmp, self._directory, self._modes, self._symbols)
        self._check_stream(channels, len(truth["vmcb12"]))
        self._check_handler(truth)
        return truth, channels

    def _machine(self, name: str, incoming: bool = False) -> Machine:
        return Machine(self._directory, name, self._spec["arguments"], self._symbols["contexts"], incoming)

    def _destination_parameters(self) -> dict[str, Any]:
        return {key: value for key, value in self._spec["parameters"].items() if key.startswith("multifd")}

    def _migrate(self, source: Machine, uri: str) -> None:
        source.configure([*self._spec["capabilities"], "events"], self._spec["parameters"])
        if self._spec["nmi"]:
            # One to take, one to stay pending while the handler runs.  The vCPUs have to run after each: QEMU reads
            # their registers before it sends an NMI, and would not read them again.
            for _ in range(2):
                source.qmp.command("inject-nmi")
                time.sleep(NMI_SECONDS)
        source.qmp.command("migrate", uri=uri)
        if "postcopy-ram" in self._spec["capabilities"]:
            _wait_for(source, lambda info: info.get("ram", {}).get("transferred", 0) > 0, "the first page")
            source.qmp.command("migrate-start-postcopy")
        passes = self._spec["passes"]
        if passes:
            _wait_for(source, lambda info: info.get("ram", {}).get("dirty-sync-count", 0) >= passes, f"pass {passes}")
            source.qmp.command("migrate-set-parameters", downtime_limit=LENIENT_DOWNTIME_MS)
        _wait_for(source, lambda info: bool(info["status"] == "completed"), "completion")
        if "xbzrle" in self._spec["capabilities"]:
            cache = source.qmp.command("query-migrate")["xbzrle-cache"]
            if not cache["pages"]:
                raise RuntimeError(f"no page went as XBZRLE: {cache}")

    def _check_handler(self, truth: dict[str, Any]) -> None:
        for index, letter in enumerate(self._modes):
            if self._spec["nmi"] and letter == "N":
                rip = int(truth["registers"][str(index)]["values"]["RIP"], 16)
                if not self._symbols["nmi_taken"] < rip <= self._symbols["nmi_end"]:
                    raise Untimely(f"vCPU {index} is not in the NMI handler: {rip:#x}")

    def _check_stream(self, channels: list[Channel], wanted: int) -> None:
        main = next(channel for channel in channels if channel.role() == "stream")
        flags = list(_flags_of_nested_states(main.forward.read_bytes()))
        if len(flags) != wanted:
            raise Untimely(f"{len(flags)} nested states in the stream, not {wanted}")
        if self._spec["run_pending"] and not any(value & RUN_PENDING for value in flags):
            raise Untimely(f"no nested state has RUN_PENDING: {flags}")
        if "postcopy-ram" in self._spec["capabilities"] and not _asks_for_pages(main.backward.read_bytes()):
            raise Untimely("the destination asked for no page")


def _flags_of_nested_states(stream: bytes) -> Iterator[int]:
    """The first field of each ``cpu/nested_state``, which follows the name and a version."""
    position = stream.find(NESTED_STATE)
    while position >= 0:
        (flags,) = FLAGS.unpack_from(stream, position + len(NESTED_STATE) + 4)
        yield flags
        position = stream.find(NESTED_STATE, position + 1)


def _asks_for_pages(returned: bytes) -> bool:
    """Whether a return path without bitmaps holds a request for a page."""
    position = 0
    while position < len(returned):
        kind, length = RETURN_MESSAGE.unpack_from(returned, position)
        if kind in REQUESTS_OF_PAGES:
            return True
        position += RETURN_MESSAGE.size + length
    return False


def _wait_for(source: Machine, reached: Callable[[dict[str, Any]], bool], what: str) -> None:
    """Polls query-migrate; raises RuntimeError when the migration fails, TimeoutError with its state in the end."""
    info: dict[str, Any] = {}

    def check() -> bool:
        info.update(source.qmp.command("query-migrate"))
        if info.get("status") == "failed":
            raise RuntimeError(f"the migration failed: {info.get('error-desc', 'no reason given')}")
        return reached(info)

    try:
        wait_until(check, MIGRATION_SECONDS, f"{what} of the migration", 0.01)
    except TimeoutError as late:
        raise TimeoutError(f"{late}; query-migrate: {info}") from late


def main(specification: Path) -> None:
    """Records what the file specifies, in as many attempts as it takes."""
    spec = json.loads(specification.read_text())
    job = specification.parent.absolute()
    for attempt in range(1, ATTEMPTS + 1):
        directory = job / f"attempt{attempt}"
        directory.mkdir()
        shutil.copy(job / "l1.elf", directory)
        try:
            Recorder(spec, directory).record(job / "out")
        except Untimely as untimely:
            print(f"attempt {attempt}: {untimely}", flush=True)
        else:
            return
    raise SystemExit(f"no recording in {ATTEMPTS} attempts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
