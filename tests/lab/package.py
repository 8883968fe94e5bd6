# SPDX-License-Identifier: GPL-2.0-or-later
"""qmpfilter as a host of the laboratory can run it: in a directory of its own, with what it imports."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from .cache import cached
from .emulator import EmulatedHost, Result
from .hosts import MID, OLD, emulator

# Imported by what runs inside of hosts, and Python, or with Python that does the same where it is not.
PACKAGES = ("qmpfilter", "construct", "click", "rich", "markdown_it", "mdurl", "pygments", "qemu.qmp")
# The one that is compiled is there for the Python of each host.
COMPILED = "msgspec"
FETCH = Path(__file__).parents[2] / "examples/debian/dependencies.py"
FETCH_SECONDS = 300.0
# For a store in etcd; where the package is installed without it, hosts have none either.
FOR_ETCD = (
    "etcd3gw", "futurist", "debtcollector", "wrapt", "pbr",
    "requests", "urllib3", "certifi", "idna", "charset_normalizer",
)  # fmt: skip
# They ask for their own version.
WITH_METADATA = ("debtcollector", "etcd3gw", "futurist")
INSTALL_SECONDS = 120.0
COMPILE_SECONDS = 120.0
PLACE = "/opt/qmpfilter"
_TAR = "qmpfilter.tar.gz"
_OWN_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_PYTHON_OF_OLD = "3.11"


def unpack_package(directory: Path) -> None:
    """Puts it into a directory, where it and what it imports can be found."""
    stores = find_spec(FOR_ETCD[0]) is not None
    for name in (*PACKAGES, *(FOR_ETCD if stores else ())):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        above = package.parents[name.count(".")]
        for file in package.rglob("*.py"):
            there = directory / file.relative_to(above)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, there)
    shutil.copytree(_compiled() / COMPILED, directory / COMPILED)
    for name in WITH_METADATA if stores else ():
        found = distribution(name)
        metadata = directory / f"{name}-{found.version}.dist-info/METADATA"
        metadata.parent.mkdir()
        metadata.write_text(found.read_text("METADATA") or "")


def _compiled() -> Path:
    def fetch(directory: Path) -> None:
        argv = [sys.executable, *map(str, (FETCH, FETCH.parents[2], "compiled", directory, directory / "licences"))]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=FETCH_SECONDS)

    digest = hashlib.sha256(FETCH.read_bytes()).hexdigest()[:8]
    return cached(f"{COMPILED}-{distribution(COMPILED).version}-{digest}", fetch)


def run_python(host: EmulatedHost, arguments: Sequence[str], files: Mapping[str, bytes], seconds: float) -> Result:
    """Runs Python in a host, where it and what it starts can import the package; raises like EmulatedHost.run."""
    return host.run(["env", f"PYTHONPATH={installed(host)}", "python3", *arguments], files, seconds)


def run_packaged(host: EmulatedHost, seconds: float, *arguments: str) -> Result:
    """Runs the command line in a host; raises JobFailed if it ends with something else than 0."""
    return run_python(host, ["-m", "qmpfilter", *arguments], {}, seconds)


def installed(host: EmulatedHost) -> str:
    """Where the package is in a host, for PYTHONPATH; put there once."""
    unpack = ["sh", "-c", f"mkdir -p {PLACE} && tar -xzf {_TAR} -C {PLACE}"]
    host.provide("package", unpack, {_TAR: _packed_for(host.host.release)}, INSTALL_SECONDS)
    return PLACE


@cache
def _packed_for(release: str) -> bytes:
    """The package with its modules compiled, which takes a minute under emulation, by the release's own Python."""
    packed = io.BytesIO()
    with TemporaryDirectory(prefix="qmpfilter-package-") as name:
        directory = Path(name)
        unpack_package(directory)
        _compile(directory, release)
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
            archive.add(directory, arcname=".")
    return packed.getvalue()


def _compile(directory: Path, release: str) -> None:
    """Where no Python of that version is at hand, the host compiles them itself."""
    if release == MID.release:
        root = emulator()
        command, environment = root.command("/usr/bin/python3")
        environment = environment | {"PYTHONHOME": str(root.path / "usr")}
    elif release == OLD.release and _OWN_PYTHON == _PYTHON_OF_OLD:
        command, environment = [sys.executable], {}
    else:
        return
    compiling = ["-m", "compileall", "-q", "-s", str(directory), "-p", PLACE, str(directory)]
    subprocess.run(
        [*command, *compiling], env=os.environ | environment, check=True, capture_output=True, timeout=COMPILE_SECONDS
    )
