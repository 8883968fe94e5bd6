# SPDX-License-Identifier: GPL-2.0-or-later
"""qmpfilter as a host of the laboratory can run it: in a directory of its own, with what it imports."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

from .emulator import EmulatedHost, Result

# Imported by what runs inside of hosts, and Python, or with Python that does the same where it is not.
PACKAGES = ("qmpfilter", "construct", "click", "rich", "markdown_it", "mdurl", "pygments", "qemu.qmp")
# For a store in etcd; where the package is installed without it, hosts have none either.
FOR_ETCD = (
    "etcd3gw", "futurist", "debtcollector", "wrapt", "pbr",
    "requests", "urllib3", "certifi", "idna", "charset_normalizer",
)  # fmt: skip
# They ask for their own version.
WITH_METADATA = ("debtcollector", "etcd3gw", "futurist")
INSTALL_SECONDS = 120.0
PLACE = "/opt/qmpfilter"
_ZIP = "qmpfilter.zip"


@cache
def _packed_package() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        stores = find_spec(FOR_ETCD[0]) is not None
        for name in (*PACKAGES, *(FOR_ETCD if stores else ())):
            spec = find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            directory = Path(spec.origin).parent
            above = name.split(".")[:-1]
            for file in sorted(directory.rglob("*.py")):
                archive.write(file, file.relative_to(directory.parents[len(above)]))
        for name in WITH_METADATA if stores else ():
            found = distribution(name)
            archive.writestr(f"{name}-{found.version}.dist-info/METADATA", found.read_text("METADATA") or "")
    return packed.getvalue()


def unpack_package(directory: Path) -> None:
    """Puts it into a directory, where it and what it imports can be found."""
    with zipfile.ZipFile(io.BytesIO(_packed_package())) as archive:
        archive.extractall(directory)


def run_python(host: EmulatedHost, arguments: Sequence[str], files: Mapping[str, bytes], seconds: float) -> Result:
    """Runs Python in a host, where it and what it starts can import the package; raises like EmulatedHost.run."""
    return host.run(["env", f"PYTHONPATH={installed(host)}", "python3", *arguments], files, seconds)


def run_packaged(host: EmulatedHost, seconds: float, *arguments: str) -> Result:
    """Runs the command line in a host; raises JobFailed if it ends with something else than 0."""
    return run_python(host, ["-m", "qmpfilter", *arguments], {}, seconds)


def installed(host: EmulatedHost) -> str:
    """Where the package is in a host, for PYTHONPATH; put there once, as compiling takes seconds under emulation."""
    unpack = ["python3", "-m", "zipfile", "-e", _ZIP, PLACE]
    host.provide("package", unpack, {_ZIP: _packed_package()}, INSTALL_SECONDS)
    return PLACE
