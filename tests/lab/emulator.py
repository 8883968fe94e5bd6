# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots a host under an emulator of AMD hardware and gives it jobs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple, Self, TextIO

from .cables import Wire
from .hosts import Host, HostImage, Rootfs
from .inhost import agent

BOOT_SECONDS = 400.0
TOOL_SECONDS = 60.0
MEMORY_MIB = 1500
LOG_LINES = 40
LOOKS = 3
AGAIN = "the emulated host is booted again"  # setup.cfg lets this warning pass
ON_NMI = "unknown_nmi_panic"  # prints the call trace
NOISE = "warning: TCG doesn't support requested feature"  # normal, and there are many
IN_HOST = Path(agent.__file__).parent


class EmulatorError(Exception):
    """The emulated host did not boot, ended, or did not answer; the text ends with what it said last."""


class JobFailed(Exception):
    """A job ended with something else than 0; the text is its output."""


@dataclass(frozen=True)
class Result:
    """What a job said and the files it left in ``out``, by name."""

    output: str
    files: dict[str, bytes]


class _Job(NamedTuple):
    argv: Sequence[str]
    files: Mapping[str, bytes]
    seconds: float


class EmulatedHost:
    """A booted host.  Use as a context manager: the emulator ends with the block.

    The emulator is QEMU without KVM, whose TCG emulates SVM with nested paging; it comes from a host's root
    directory, because older ones crash the guests.  One virtual CPU: with more, kernels trip over the patching
    of their own code.

    :cvar init: process 1, and what more the kernel is told
    :param wires: what it is plugged into, each with a network card
    """

    init = "/lab-init"

    def __init__(self, image: HostImage, emulator: Rootfs, wires: Sequence[Wire] = ()) -> None:
        self.host: Host = image.host
        self.image = image
        self._emulator = emulator
        self._wires = wires
        self._directory = Path(mkdtemp(prefix=f"lab-{image.host.name}-"))
        self._serial = self._directory / "serial"
        self._errors = self._directory / "stderr"
        self._process: subprocess.Popen[bytes] | None = None
        self._provided: dict[str, _Job] = {}
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    def _boot(self) -> None:
        self._socket, port = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        self._port = self._socket.makefile("rwb")
        with port, monitor:
            self._start(port.fileno(), monitor.fileno())
        self.kernel = str(self._exchange(None, b"", BOOT_SECONDS)[0]["hello"])
        for job in self._provided.values():
            self._do(job)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the emulator at once and removes what the host wrote."""
        self._end()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(TOOL_SECONDS)
        self._process = None
        with contextlib.suppress(OSError):
            # What was not sent before the emulator ended has nowhere to go.
            self._port.close()
        self._socket.close()
        self._monitor.close()

    def run(self, argv: Sequence[str], files: Mapping[str, bytes], seconds: float) -> Result:
        """Runs a program in the host, in a directory with the files and the package ``inhost``.

        A host that does not answer any more is booted again, and gets the job once more: that the emulator, or a
        kernel on it, stands still now and then is told in a warning, with what the processor was doing.

        Raises JobFailed if it ends with something else than 0 or does not end in ``seconds``, and EmulatorError
        if the host does not answer.
        """
        if self._process is None:
            self._boot()
        try:
            return self.run_once(argv, files, seconds)
        except EmulatorError as silence:
            warnings.warn(f"{AGAIN}: {silence}", stacklevel=2)
            self._boot()
            return self.run_once(argv, files, seconds)

    def run_once(self, argv: Sequence[str], files: Mapping[str, bytes], seconds: float) -> Result:
        """Runs a program as :meth:`run` does, and leaves a host that does not answer as it is: ended."""
        return self._do(_Job(argv, files, seconds))

    def provide(self, name: str, argv: Sequence[str], files: Mapping[str, bytes], seconds: float) -> None:
        """Has a job done once, and again after each boot, that leaves what later jobs need."""
        if name not in self._provided:
            self.run(argv, files, seconds)
            self._provided[name] = _Job(argv, files, seconds)

    def _do(self, job: _Job) -> Result:
        if self._process is None:
            raise EmulatorError(f"host {self.host.name} has ended")
        with_package = Path(mkdtemp(dir=self._directory))
        shutil.copytree(IN_HOST, with_package / "inhost", ignore=shutil.ignore_patterns("__pycache__"))
        for name, content in job.files.items():
            (with_package / name).write_bytes(content)
        fields = {"argv": list(job.argv), "timeout": job.seconds}
        reply, archive = self._exchange(fields, agent.pack_directory(with_package), job.seconds + TOOL_SECONDS)
        shutil.rmtree(with_package)
        if reply["returncode"] != 0:
            ended = f"{' '.join(job.argv)} on {self.host.name} ended with {reply['returncode']}"
            raise JobFailed(f"{ended}:\n{reply['output']}")
        left = Path(mkdtemp(dir=self._directory))
        agent.unpack(archive, left)
        found = {file.name: file.read_bytes() for file in left.iterdir()}
        shutil.rmtree(left)
        return Result(str(reply["output"]), found)

    def _start(self, port: int, monitor: int) -> None:
        image, emulator = self.image, self._emulator
        overlay = self._directory / "disk.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.disk), str(overlay)],
            check=True,
            capture_output=True,
            timeout=TOOL_SECONDS,
        )
        command, environment = emulator.command("/usr/bin/qemu-system-x86_64")
        argv = [
            *command,
            *("-L", str(emulator.path / "usr/share/qemu"), "-L", str(emulator.path / "usr/share/seabios")),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "q35", "-accel", "tcg", "-cpu", "EPYC,+svm,+npt,+vgif", "-smp", "1", "-m", str(MEMORY_MIB)),
            *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            *("-append", f"console=ttyS0 quiet root=/dev/vda rw net.ifnames=0 {ON_NMI} init={self.init}"),
            *("-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe"),
            *("-serial", f"file:{self._serial}"),
            *("-chardev", f"socket,id=port,fd={port}", "-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=port,name=lab"),
            *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
        ]
        for number, wire in enumerate(self._wires):
            argv += ["-netdev", f"{wire.backend},id=wire{number}"]
            argv += ["-device", f"virtio-net-pci,netdev=wire{number},mac={wire.card},romfile="]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                argv,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[port, monitor, *chain.from_iterable(wire.descriptors for wire in self._wires)],
            )

    def _exchange(self, job: dict[str, Any] | None, archive: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Sends a job, if there is one, and receives a message."""
        assert self._process is not None
        # The emulator's end of the socket pair closes with the emulator, so the read below ends with it; the timer
        # is for a host that hangs.
        process = self._process
        looks: list[str] = []
        timer = threading.Timer(seconds, self._give_up, [process, looks])
        timer.start()
        try:
            if job is not None:
                agent.send_message(self._port, job, archive)
            message = agent.receive_message(self._port)
            timer.cancel()
            # Where it has fired already, the host is about to end.
            timer.join()
            if process.poll() is not None:
                raise EOFError("the answer came too late")
            return message
        except (OSError, EOFError) as end:
            process.wait(TOOL_SECONDS)
            self._end()
            raise EmulatorError(
                f"host {self.host.name} gave no answer within {seconds:g} s ({end}); "
                f"the emulator ended with {process.returncode}\n{self._tail()}\n{''.join(looks)}"
            ) from end
        finally:
            timer.cancel()

    def _give_up(self, process: subprocess.Popen[bytes], looks: list[str]) -> None:
        """Asks the emulator what a host that hangs is doing, has its kernel say so as well, and ends it."""
        try:
            self._monitor.settimeout(TOOL_SECONDS)
            with self._monitor.makefile("rw") as lines:
                _ask(lines, "qmp_capabilities")
                for _ in range(LOOKS):
                    registers = _ask(lines, "human-monitor-command", {"command-line": "info registers"})
                    looks.append(f"--- the processor ---\n{str(registers).partition('FCW=')[0]}")
                    time.sleep(1)
                # The kernel answers with its call trace on the serial console.
                _ask(lines, "inject-nmi")
                time.sleep(LOOKS)
        except (OSError, ValueError) as silence:
            looks.append(f"the emulator's monitor does not answer: {silence}\n")
        finally:
            process.kill()

    def _tail(self) -> str:
        parts = []
        for title, file in (("serial console", self._serial), ("emulator", self._errors)):
            lines = file.read_text(errors="replace").splitlines() if file.exists() else []
            parts.append(f"--- {title}, last lines ---")
            parts += [line for line in lines if NOISE not in line][-LOG_LINES:]
        return "\n".join(parts)


def _ask(lines: TextIO, command: str, arguments: dict[str, Any] | None = None) -> object:
    lines.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
    lines.flush()
    while line := lines.readline():
        reply = json.loads(line)
        if "return" in reply or "error" in reply:
            return reply.get("return", reply.get("error"))
    raise OSError("it ended")
