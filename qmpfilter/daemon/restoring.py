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

from qmpfilter.errors import DeadlineError, HostError, PolicyError, RefusedError, StreamError
from qmpfilter.filter.carrier import Carrier
from qmpfilter.filter.gate import Gate
from qmpfilter.filter.policy import Mode, Policy
from qmpfilter.libvirt.daemons import libvirt_processes
from qmpfilter.saveimage.header import MAGIC
from qmpfilter.saveimage.source import Source, open_source

__all__ = ["check_image"]

_log: Final = logging.getLogger(__name__)

_BUFFER: Final = 1 << 20
# A hook has ten seconds, and the domain's memory passes before what is looked for.
_SECONDS: Final = 7.0


def check_image(uuid: str, policy: Policy, proc: Path = Path("/proc")) -> None:
    """Check what a libvirt of this host is about to restore.

    :param policy: for this host as the destination. With mode off nothing is read; with observe nothing is refused
        for which a migration would not be stopped either
    :raises PolicyError: this host would refuse it, or lose what must not be lost
    :raises HostError: it could not be looked at: libvirt has it not open, or it takes too long
    """
    if policy.mode is Mode.OFF:
        return
    # The file is restored as it is. Whatever would be made of it on its way, its state has to be one that converts.
    mode = policy.mode if policy.mode is Mode.OBSERVE else Mode.ANNEX
    late = time.monotonic() + _SECONDS
    unread: HostError | None = None
    for path in _open_images(proc):
        if (name := _target(path)) is None:
            continue
        try:
            opened = open_source(str(path))
        except (StreamError, HostError) as error:
            # Whose it is cannot be told: the one that is sought may still come.
            if _target(path) == name:
                unread = _unreadable(name, error)
            continue
        with opened as source:
            if source.domain is None or str(source.domain.uuid) != uuid:
                continue
            try:
                _read(source, Gate(replace(policy, mode=mode, without_return_path=True)), name, late)
            except RefusedError as error:
                raise PolicyError(f"{name}: {error}") from error
            except StreamError as error:
                raise _unreadable(name, error) from error
        _log.info("domain %s: nothing speaks against restoring %s", uuid, name)
        return
    raise unread or HostError(
        "the image to be restored was not found open in a libvirt of this host, and is not checked"
    )


def _unreadable(name: str, error: Exception) -> HostError:
    return HostError(f"{name} cannot be read, and libvirt may say why: {error}")


def _read(source: Source, gate: Gate, name: str, late: float) -> None:
    """:raises PolicyError: this host would refuse the guest"""
    buffer = memoryview(bytearray(_BUFFER))
    try:
        while count := source.readinto(buffer):
            data = buffer[:count]
            if not gate.pass_pages(data):
                for _ in gate.receive_data(data):
                    pass
            if time.monotonic() > late:
                raise DeadlineError(f"{name} could not be read within {_SECONDS:g} s, and is not checked")
        for _ in gate.receive_eof():
            pass
    except PolicyError as error:
        raise PolicyError(f"{name}: {error}") from error
    # A live migration would be converted here; a file is restored as it is.
    if gate.policy.mode is not Mode.OBSERVE and any(vcpu.found is Carrier.NATIVE for vcpu in gate.vcpus):
        raise PolicyError(
            f"{name} holds native svm2, on which QEMU ends: restore what "
            f"'qmpfilter convert {name} NEW --to annex' makes of it"
        )


def _open_images(proc: Path) -> Iterator[Path]:
    """Save images that a libvirt has open."""
    for process in libvirt_processes(proc):
        try:
            descriptors = list(process.joinpath("fd").iterdir())
        except OSError:
            # It has ended.
            continue
        yield from filter(_is_image, descriptors)


def _target(path: Path) -> str | None:
    """The file that a descriptor is of, which is a name that a person can use; None if it was closed since."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def _is_image(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        # Closed since it was listed.
        return False
