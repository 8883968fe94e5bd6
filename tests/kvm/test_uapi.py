# SPDX-License-Identifier: GPL-2.0-or-later
"""The ABI: sizes and request numbers as a C compiler computes them from Linux's own headers."""

from __future__ import annotations

import ctypes

import pytest

from qmpfilter.kvm import uapi
from qmpfilter.kvm.uapi import Ioctl


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (uapi.Regs, 144),
        (uapi.Segment, 24),
        (uapi.Dtable, 16),
        (uapi.Sregs2, 320),
        (uapi.DebugRegs, 128),
        (uapi.Events, 64),
        (uapi.MsrEntry, 16),
        (uapi.CpuidEntry, 40),
        (uapi.MemoryRegion, 32),
        (uapi.Xcrs, 392),
        (uapi.Run, 288),
        (uapi.msrs(3), 8 + 3 * 16),
        (uapi.cpuid2(2), 8 + 2 * 40),
    ],
)
def test_sizes(structure: type[ctypes.Structure], size: int) -> None:
    assert ctypes.sizeof(structure) == size


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        (Ioctl.GET_API_VERSION, 0xAE00),
        (Ioctl.GET_SUPPORTED_CPUID, 0xC008AE05),
        (Ioctl.SET_USER_MEMORY_REGION, 0x4020AE46),
        (Ioctl.RUN, 0xAE80),
        (Ioctl.GET_REGS, 0x8090AE81),
        (Ioctl.GET_MSRS, 0xC008AE88),
        (Ioctl.SET_CPUID2, 0x4008AE90),
        (Ioctl.SET_VCPU_EVENTS, 0x4040AEA0),
        (Ioctl.GET_XSAVE, 0x9000AEA4),
        (Ioctl.SET_XCRS, 0x4188AEA7),
        (Ioctl.GET_NESTED_STATE, 0xC080AEBE),
        (Ioctl.SET_NESTED_STATE, 0x4080AEBF),
        (Ioctl.GET_SREGS2, 0x8140AECC),
    ],
)
def test_request_numbers(request_: Ioctl, number: int) -> None:
    assert request_ == number


def test_a_guests_out_is_found_in_kvm_run() -> None:
    run = uapi.Run.from_buffer(bytearray(ctypes.sizeof(uapi.Run)))
    assert uapi.Run.exit_reason.offset == 8
    assert ctypes.addressof(run.io) - ctypes.addressof(run) == 32
