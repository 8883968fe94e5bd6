# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/kvm, a virtual machine, a vCPU: one class each, closed with their block.

Source: Linux 6.12 Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from qmpfilter.errors import HostError
from qmpfilter.kvm import uapi
from qmpfilter.kvm.uapi import Cap, Exit, Ioctl

__all__ = ["CpuidRow", "Kvm", "KvmError", "Memory", "Vcpu", "Vm"]

_DEVICE: Final = Path("/dev/kvm")
_API_VERSION: Final = 12
_CPUID_ROWS: Final = 256
_KICK_SECONDS: Final = 0.05
# Where Intel's real mode support needs three pages; AMD's ignores it (api.rst 4.35).
_TSS_ADDRESS: Final = 0xFFFB_D000
# Address space 1 is what a vCPU in SMM sees (api.rst 4.35).
_SPACE_SHIFT: Final = 16

_libc = ctypes.CDLL(None, use_errno=True)
_S = TypeVar("_S", bound=ctypes.Structure)


class KvmError(HostError):
    """An ioctl failed: `request` names it, `errno` says why."""

    def __init__(self, request: Ioctl, code: int) -> None:
        self.request = request
        self.errno = code
        super().__init__(f"KVM_{request.name}: {errno.errorcode.get(code, code)} ({os.strerror(code)})")


@dataclass(frozen=True, slots=True)
class CpuidRow:
    """One leaf; flags bit 0: `index` counts."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


class _Descriptor:
    """A file descriptor of KVM's and its ioctls."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self: _D) -> _D:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give it back; what was made of it goes with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """For requests that have no method here."""
        return self._fd

    def _call(self, request: Ioctl, argument: object = 0) -> int:
        """:raises KvmError: the kernel refuses"""
        if isinstance(argument, (ctypes.Structure, ctypes.Array)):
            argument = ctypes.byref(argument)
        elif isinstance(argument, int):
            argument = ctypes.c_ulong(argument)
        result: int = _libc.ioctl(self._fd, ctypes.c_ulong(request), argument)
        if result < 0:
            raise KvmError(request, ctypes.get_errno())
        return result

    def _fetch(self, request: Ioctl, kind: type[_S]) -> _S:
        value = kind()
        self._call(request, value)
        return value


_D = TypeVar("_D", bound=_Descriptor)


class Kvm(_Descriptor):
    """/dev/kvm.

    :raises HostError: it is not there, or not for this user
    """

    def __init__(self) -> None:
        try:
            super().__init__(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            raise HostError(f"{_DEVICE} is not there: load kvm_amd (or turn SVM on in the firmware)") from None
        except PermissionError:
            raise HostError(f"{_DEVICE} may not be opened: be root, or a member of its group") from None
        except OSError as error:
            raise HostError(f"{_DEVICE} cannot be opened: {error.strerror}") from error
        version = self._call(Ioctl.GET_API_VERSION)
        if version != _API_VERSION:
            self.close()
            raise HostError(f"{_DEVICE} speaks version {version} of KVM's API, not {_API_VERSION}")

    def check_extension(self, cap: Cap) -> int:
        """What KVM says of a capability; 0 is no."""
        return self._call(Ioctl.CHECK_EXTENSION, int(cap))

    def supported_cpuid(self) -> list[CpuidRow]:
        """What a guest may be given."""
        table = uapi.cpuid2(_CPUID_ROWS)()
        table.head.count = _CPUID_ROWS
        self._call(Ioctl.GET_SUPPORTED_CPUID, table)
        return [
            CpuidRow(row.function, row.index, row.flags, row.eax, row.ebx, row.ecx, row.edx)
            for row in table.entries[: table.head.count]
        ]

    def create_vm(self) -> Vm:
        """A virtual machine without memory or vCPUs."""
        vm = Vm(self._call(Ioctl.CREATE_VM), self._call(Ioctl.GET_VCPU_MMAP_SIZE))
        vm.prepare()
        return vm


class Memory:
    """A stretch of guest memory from guest-physical address `gpa`; index and slice it by guest address."""

    def __init__(self, gpa: int, size: int) -> None:
        self.gpa = gpa
        self.map = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes of the guest."""
        return self.map[gpa - self.gpa : gpa - self.gpa + size]

    def write(self, gpa: int, data: bytes) -> None:
        """Put bytes into the guest."""
        self.map[gpa - self.gpa : gpa - self.gpa + len(data)] = data


class Vm(_Descriptor):
    """A virtual machine."""

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        self._run_size = run_size
        self._memory: list[Memory] = []
        self._spaces = max(1, self._call(Ioctl.CHECK_EXTENSION, int(Cap.MULTI_ADDRESS_SPACE)))

    def prepare(self) -> None:
        """What a machine needs before its first vCPU."""
        self._call(Ioctl.SET_TSS_ADDR, _TSS_ADDRESS)

    def add_memory(self, gpa: int, size: int) -> Memory:
        """Zeroed memory at a guest-physical address, inside of SMM too."""
        memory = Memory(gpa, size)
        for space in range(self._spaces):
            slot = len(self._memory) | space << _SPACE_SHIFT
            region = uapi.MemoryRegion(slot, 0, gpa, size, memory.address)
            self._call(Ioctl.SET_USER_MEMORY_REGION, region)
        self._memory.append(memory)
        return memory

    def create_vcpu(self, index: int, cpuid: Iterable[CpuidRow]) -> Vcpu:
        """A vCPU with that CPUID."""
        vcpu = Vcpu(self._call(Ioctl.CREATE_VCPU, index), self._run_size)
        try:
            vcpu.set_cpuid(cpuid)
        except BaseException:
            vcpu.close()
            raise
        return vcpu


class Vcpu(_Descriptor):
    """A vCPU. Its structures are those of :mod:`qmpfilter.kvm.uapi`."""

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        self._map = mmap.mmap(fd, run_size)
        self.state = uapi.Run.from_buffer(self._map)

    def set_cpuid(self, rows: Iterable[CpuidRow]) -> None:
        """Only before the vCPU has run."""
        given = list(rows)
        table = uapi.cpuid2(len(given))()
        table.head.count = len(given)
        for entry, row in zip(table.entries, given, strict=True):
            for name, value in asdict(row).items():
                setattr(entry, name, value)
        self._call(Ioctl.SET_CPUID2, table)

    def regs(self) -> uapi.Regs:
        """General registers, RIP, RFLAGS."""
        return self._fetch(Ioctl.GET_REGS, uapi.Regs)

    def set_regs(self, regs: uapi.Regs) -> None:
        """General registers, RIP, RFLAGS."""
        self._call(Ioctl.SET_REGS, regs)

    def sregs2(self) -> uapi.Sregs2:
        """Segments, tables, control registers, EFER, PDPTRs."""
        return self._fetch(Ioctl.GET_SREGS2, uapi.Sregs2)

    def set_sregs2(self, sregs: uapi.Sregs2) -> None:
        """Segments, tables, control registers, EFER, PDPTRs."""
        self._call(Ioctl.SET_SREGS2, sregs)

    def msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """MSRs by number.

        :raises KvmError: ENOENT for one that this vCPU does not have
        """
        table = uapi.msrs(len(indices))()
        table.head.count = len(indices)
        for entry, index in zip(table.entries, indices, strict=True):
            entry.index = index
        if self._call(Ioctl.GET_MSRS, table) != len(indices):
            raise KvmError(Ioctl.GET_MSRS, errno.ENOENT)
        return {entry.index: entry.data for entry in table.entries}

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """MSRs by number, in that order.

        :raises KvmError: EINVAL for one that does not take its value
        """
        table = uapi.msrs(len(values))()
        table.head.count = len(values)
        for entry, (index, data) in zip(table.entries, values.items(), strict=True):
            entry.index, entry.data = index, data
        if self._call(Ioctl.SET_MSRS, table) != len(values):
            raise KvmError(Ioctl.SET_MSRS, errno.EINVAL)

    def debug_regs(self) -> uapi.DebugRegs:
        """DR0 to DR3, DR6, DR7."""
        return self._fetch(Ioctl.GET_DEBUGREGS, uapi.DebugRegs)

    def set_debug_regs(self, regs: uapi.DebugRegs) -> None:
        """DR0 to DR3, DR6, DR7."""
        self._call(Ioctl.SET_DEBUGREGS, regs)

    def events(self) -> uapi.Events:
        """Exceptions, interrupts, NMI and SMI that are under way."""
        return self._fetch(Ioctl.GET_VCPU_EVENTS, uapi.Events)

    def set_events(self, events: uapi.Events) -> None:
        """Exceptions, interrupts, NMI and SMI that are under way."""
        self._call(Ioctl.SET_VCPU_EVENTS, events)

    def xsave(self) -> bytes:
        """x87, SSE and more, 4096 bytes as XSAVE lays them out."""
        area = (ctypes.c_char * 4096)()
        self._call(Ioctl.GET_XSAVE, area)
        return bytes(area)

    def set_xsave(self, area: bytes) -> None:
        """x87, SSE and more, 4096 bytes as XSAVE lays them out."""
        self._call(Ioctl.SET_XSAVE, (ctypes.c_char * 4096).from_buffer_copy(area))

    def xcrs(self) -> uapi.Xcrs:
        """XCR0."""
        return self._fetch(Ioctl.GET_XCRS, uapi.Xcrs)

    def set_xcrs(self, xcrs: uapi.Xcrs) -> None:
        """XCR0."""
        self._call(Ioctl.SET_XCRS, xcrs)

    def mp_state(self) -> int:
        """KVM_MP_STATE_*; 0 is runnable."""
        state: int = self._fetch(Ioctl.GET_MP_STATE, uapi.MpState).state
        return state

    def set_mp_state(self, state: int) -> None:
        """KVM_MP_STATE_*."""
        self._call(Ioctl.SET_MP_STATE, uapi.MpState(state))

    def nested_state(self) -> bytes:
        """struct kvm_nested_state, as long as it says."""
        area = (ctypes.c_char * _NESTED_ROOM)()
        ctypes.memmove(ctypes.addressof(area) + 4, _NESTED_ROOM.to_bytes(4, "little"), 4)
        self._call(Ioctl.GET_NESTED_STATE, area)
        taken = bytes(area)
        return taken[: int.from_bytes(taken[4:8], "little")]

    def set_nested_state(self, state: bytes) -> None:
        """struct kvm_nested_state. More bytes than it has may be read by the kernel, and are zero."""
        area = (ctypes.c_char * max(_NESTED_ROOM, len(state)))()
        ctypes.memmove(area, state, len(state))
        self._call(Ioctl.SET_NESTED_STATE, area)

    def smi(self) -> None:
        """Make an SMI pending."""
        self._call(Ioctl.SMI)

    def complete(self) -> None:
        """Finish what the last exit began (an OUT, for one), without running the guest."""
        self.state.immediate_exit = 1
        try:
            self._call(Ioctl.RUN)
        except KvmError as error:
            if error.errno != errno.EINTR:
                raise
        finally:
            self.state.immediate_exit = 0

    def run(self, seconds: float) -> Exit:
        """Run the guest until it exits; only from the main thread.

        :raises HostError: it does not exit in that time
        :raises KvmError: it cannot run
        """
        reason = self.run_for(seconds)
        if reason is None:
            raise HostError(f"the guest did not stop within {seconds:g} s")
        return reason

    def run_for(self, seconds: float) -> Exit | None:
        """Run the guest until it exits, or until the time is over: then the result is None. Only from the main
        thread.

        A timer's signal takes the vCPU out of the guest, and whoever had SIGALRM has it again.

        :raises KvmError: it cannot run
        """
        end = time.monotonic() + seconds
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        # It comes again and again, because the first may come before the vCPU has entered the guest.
        signal.setitimer(signal.ITIMER_REAL, seconds, _KICK_SECONDS)
        try:
            while True:
                try:
                    self._call(Ioctl.RUN)
                    return Exit(self.state.exit_reason)
                except KvmError as error:
                    if error.errno not in (errno.EINTR, errno.EAGAIN):
                        raise
                    if time.monotonic() >= end:
                        return None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def out_data(self) -> tuple[int, bytes]:
        """Port and bytes of an OUT that the last exit (Exit.IO) stands for."""
        io: Any = self.state.io
        return io.port, self._map[io.data_offset : io.data_offset + io.size * io.count]


# Of the largest state that any kernel has; VMX needs two pages.
_NESTED_ROOM: Final = 128 + 2 * 4096
