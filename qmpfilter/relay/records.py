# SPDX-License-Identifier: GPL-2.0-or-later
"""The svm2 records of a guest that arrived, as files that other tools can take: ``vcpuN.svm2``, one for each vCPU in
L2, a struct kvm_nested_state of format 0x8002 (:mod:`qmpfilter.svm.native`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qmpfilter.filter.rewriter import VcpuReport
from qmpfilter.saveimage.outfile import OutputFile
from qmpfilter.svm import native

__all__ = ["write_records"]


def write_records(directory: Path, vcpus: Iterable[VcpuReport]) -> list[str]:
    """Write each vCPU's state, for the files' owner alone; the directory is made if there is one.

    :raises HostError: a file cannot be written
    :raises OSError: the directory cannot be made
    """
    written = []
    for vcpu in vcpus:
        if vcpu.state is None:
            continue
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"vcpu{vcpu.index}.svm2"
        with OutputFile(str(path)) as file:
            file.write(native.encode_blob(vcpu.state))
            file.commit()
        written.append(str(path))
    return written
