# SPDX-License-Identifier: GPL-2.0-or-later
"""A save image that libvirt is about to restore, looked at before QEMU starts.

libvirt's hook is told the domain and not the file. But libvirt has it open.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from qmpfilter.errors import DeadlineError, HostError, PolicyError, StreamError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.gate import Gate
from qmpfilter.filter.policy import Mode, Policy
from qmpfilter.saveimage.header import MAGIC
from qmpfilter.saveimage.source import open_source

__all__ = ["check_image"]

_log: Final = logging.getLogger(__name__)

_LIBVIRTS: Final = ("libvirtd", "virtqemud")
_NATIVE: Final = "native"  # the verdict's code for what no QEMU takes
_BUFFER: Final = 1 << 20
# A hook has ten seconds, and the domain's memory passes before what is looked for.
_SECONDS: Final = 7.0


def check_image(uuid: str, policy: Policy, proc: Path = Path("/proc")) -> None:
    """Check what a libvirt of this host is about to restore.

    :param policy: for this host as the destination
    :raises PolicyError: this host would refuse it, or lose what must not be lost
    :raises HostError: it could not be looked at: libvirt has it not open, or it takes too long
    """
    late = time.monotonic() + _SECONDS
    for path in _open_images(proc):
        gate = Gate(replace(policy, mode=Mode.OBSERVE, without_return_path=True))
        try:
            with open_source(str(path)) as source:
                if source.domain is None or str(source.domain.uuid) != uuid:
                    continue
                buffer = memoryview(bytearray(_BUFFER))
                while count := source.readinto(buffer):
                    for _ in gate.receive_data(buffer[:count]):
                        pass
                    if time.monotonic() > late:
                        raise DeadlineError(f"the image could not be read within {_SECONDS:g} s")
        except StreamError as error:
            raise HostError(f"the image cannot be read, and libvirt may say why: {error}") from error
        except PolicyError:
            # The verdict says only that no QEMU takes it, and not what helps.
            _refuse_native(gate, path)
            raise
        _refuse_native(gate, path)
        _log.info("the image of domain %s: %d vCPUs, nothing against them", uuid, len(gate.vcpus))
        return
    raise HostError("the image to be restored was not found open in a libvirt of this host, and is not checked")


def _refuse_native(gate: Gate, path: Path) -> None:
    # A vCPU that the verdict stopped at is only among those that were judged.
    judged = any(reason.code == _NATIVE for one in gate.judged for reason in one.verdict.reasons)
    if judged or any(vcpu.found is Carrier.NATIVE for vcpu in gate.vcpus):
        # Another process's descriptor is no name that a person can use.
        name = os.readlink(path)
        raise PolicyError(
            f"{name} holds native svm2, on which QEMU ends: restore what "
            f"'qmpfilter convert {name} NEW --to annex' makes of it"
        )


def _open_images(proc: Path) -> Iterator[Path]:
    """Save images that a libvirt has open."""
    for process in proc.iterdir():
        try:
            if not process.name.isdigit() or process.joinpath("comm").read_text().strip() not in _LIBVIRTS:
                continue
            descriptors = list(process.joinpath("fd").iterdir())
        except OSError:
            # It has ended.
            continue
        yield from filter(_is_image, descriptors)


def _is_image(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        # Closed since it was listed.
        return False
