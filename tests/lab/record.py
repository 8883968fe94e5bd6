# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the fixtures: ``python -m tests.lab.record [NAME...]``, all of the corpus without a name.

A name is that of a host and of a scenario, such as ``mid-l2``.  Each takes the place of the fixture of that name in
tests/fixtures; manifest.json says what each holds.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from .hosts import HostImage, emulator
from .inhost.modes import MODES
from .recording import Recording, record
from .scenarios import CORPUS, Migration, Scenario
from .svm2 import boot

FIXTURES = Path(__file__).parents[1] / "fixtures"
MANIFEST = FIXTURES / "manifest.json"
HOSTS_AT_ONCE = 2
_FIXTURES_LOCK = Lock()


def main(names: list[str]) -> int:
    """Records what is named; 2 when a name is unknown."""
    known = {f"{host}-{scenario.name}": (host, scenario) for host, corpus in CORPUS.items() for scenario in corpus}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown: {' '.join(unknown)}\nknown: {' '.join(known)}", file=sys.stderr)
        return 2
    chosen = names or list(known)
    by_host: dict[str, list[Scenario]] = {}
    for host, scenario in (known[name] for name in chosen):
        by_host.setdefault(host, []).append(scenario)
    FIXTURES.mkdir(exist_ok=True)
    emulator()
    with ThreadPoolExecutor(HOSTS_AT_ONCE) as pool:
        for _ in pool.map(lambda item: _record_on(*item), by_host.items()):
            pass
    if not names:
        _forget_others(known)
    return 0


def _record_on(host_name: str, scenarios: list[Scenario]) -> None:
    with boot(host_name) as host:
        for scenario in scenarios:
            start = time.monotonic()
            recording = record(host, scenario)
            name = f"{host_name}-{scenario.name}"
            with _FIXTURES_LOCK:
                entry = _store(name, host.image, recording)
                _write_manifest({**_read_manifest(), name: entry})
            print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)


def _store(name: str, image: HostImage, recording: Recording) -> dict[str, Any]:
    """Writes a recording's files, and returns its entry of the manifest."""
    for stale in FIXTURES.glob(f"{name}.*.xz"):
        stale.unlink()
    files: dict[str, Any] = {}
    for role, content in sorted(recording.files.items()):
        written = _write(name, role, content)
        if role.startswith("multifd"):
            files.setdefault("multifd", []).append(written)
        else:
            files[role] = written
    truth = json.dumps(recording.truth, indent=1, sort_keys=True) + "\n"
    files["truth"] = _write(name, "truth.json", truth.encode())
    scenario = recording.scenario
    entry: dict[str, Any] = {
        "name": name,
        "host": image.host.name,
        "kernel": image.versions["kernel"],
        "qemu": image.versions["qemu"],
        "machine": recording.machine,
        "vcpus": [
            {
                "index": index,
                "letter": letter,
                "mode": recording.truth["places"][str(index)],
                "nested paging": MODES[letter].nested_paging,
            }
            for index, letter in enumerate(scenario.vcpus)
        ],
        "files": files,
    }
    if isinstance(scenario, Migration):
        entry |= {
            "kind": "stream",
            "capabilities": list(scenario.capabilities),
            "parameters": scenario.parameters,
            "command line": scenario.arguments(),
        }
    else:
        entry |= {
            "kind": "save-image",
            "libvirt": image.versions["libvirt"],
            "format": scenario.save_format,
            "capabilities": [],
            "command line": ["-append", scenario.guest],
        }
    return entry


def _write(name: str, role: str, content: bytes) -> dict[str, Any]:
    file = FIXTURES / f"{name}.{role}.xz"
    file.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    return {"file": file.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _forget_others(known: Collection[str]) -> None:
    """Removes the fixtures that the corpus no longer has."""
    entries = _read_manifest()
    for name in entries.keys() - set(known):
        for stale in FIXTURES.glob(f"{name}.*.xz"):
            stale.unlink()
    _write_manifest({name: entry for name, entry in entries.items() if name in known})


def _read_manifest() -> dict[str, dict[str, Any]]:
    if not MANIFEST.exists():
        return {}
    return {entry["name"]: entry for entry in json.loads(MANIFEST.read_text())["fixtures"]}


def _write_manifest(entries: dict[str, dict[str, Any]]) -> None:
    listed = [entries[name] for name in sorted(entries)]
    MANIFEST.write_text(json.dumps({"fixtures": listed}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
