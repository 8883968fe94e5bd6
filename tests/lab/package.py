# SPDX-License-Identifier: GPL-2.0-or-later
"""qmpfilter as a host of the laboratory can run it: one zip file with what it imports, for PYTHONPATH."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from .emulator import EmulatedHost, Result

# Imported by what runs inside of hosts, and pure Python.
PACKAGES = ("qmpfilter", "construct", "click", "rich", "markdown_it", "mdurl", "pygments", "qemu.qmp")
ZIP = "qmpfilter.zip"


@cache
def packed_package() -> bytes:
    """The zip file; a host runs ``PYTHONPATH=qmpfilter.zip python3 -m qmpfilter``."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in PACKAGES:
            spec = find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            directory = Path(spec.origin).parent
            above = name.split(".")[:-1]
            for depth in range(len(above)):
                # A namespace package is only found in a zip file where the directory itself is in it.
                archive.mkdir("/".join(above[: depth + 1]))
            for file in sorted(directory.rglob("*.py")):
                archive.write(file, file.relative_to(directory.parents[len(above)]))
    return packed.getvalue()


def run_packaged(host: EmulatedHost, seconds: float, *arguments: str) -> Result:
    """Runs the command line in a host; raises JobFailed if it ends with something else than 0."""
    argv = ["env", f"PYTHONPATH={ZIP}", "python3", "-m", "qmpfilter", *arguments]
    return host.run(argv, {ZIP: packed_package()}, seconds)
