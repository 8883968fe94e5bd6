# SPDX-License-Identifier: GPL-2.0-or-later
"""Emulated hosts with a libvirt each, and a nested guest that goes from one to the other by ``virsh migrate``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import chain
from typing import Any, Final, TypeVar

from .cables import Wire, address, cables, outlet
from .emulator import AGAIN, EmulatedHost, EmulatorError, Result
from .guest.build import build_guest
from .hosts import Host, emulator, host_image
from .inhost.console import read_console
from .inhost.waiting import wait_until

SECONDS: Final = 400.0
PROGRESS_SECONDS: Final = 240.0
#: What each host has for the guest.
PLACE: Final = "/srv/guest"
#: Two L2s: one whose paging L1 shadows, one with nested paging.
MODES: Final = "2n"
DOMAIN: Final = "nested"
#: All three QEMUs have this machine type. Its vCPUs, which never rest, leave the host's only processor to everything
#: else. QEMU begins a console anew, so that it holds what was printed at this host.
XML: Final = f"""<domain type='kvm'>
  <name>{DOMAIN}</name>
  <uuid>6e657374-6564-4000-8000-000000000002</uuid>
  <memory unit='MiB'>32</memory><vcpu>{{vcpus}}</vcpu>
  <cputune><vcpusched vcpus='0-{{last}}' scheduler='idle'/></cputune>
  <os>
    <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>
    <kernel>{PLACE}/l1.elf</kernel>
    <cmdline>vcpus={{modes}} dirty={{dirty}} spin={{spin}}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough' migratable='on'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{PLACE}/console' append='off'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""
NPT: Final = "modprobe -r kvm_amd && modprobe kvm_amd nested=1 npt={}"
_LIST: Final = ("list", "--all", "--name")
_T = TypeVar("_T")
_Result = TypeVar("_Result")


class Member(EmulatedHost):
    """A host of a cluster. Use as a context manager.

    It is not booted again for a job that is not answered: the guests and daemons that the job is about would be gone.
    """

    def __init__(self, name: str, host: Host, addresses: Mapping[str, str], wires: Sequence[Wire]) -> None:
        self.name = name
        self.address = addresses[name]
        ends = {wire.card: (wire.own, wire.peer) for wire in wires}
        self._spec = {"name": name, "addresses": dict(addresses), "wires": ends}
        super().__init__(host_image(host), emulator(), wires)

    def _boot(self) -> None:
        super()._boot()
        self.run(
            ["python3", "-m", "inhost.member", "spec.json"], {"spec.json": json.dumps(self._spec).encode()}, SECONDS
        )
        self.run(["sh", "-c", f"mkdir -p {PLACE} && cp l1.elf {PLACE}"], {"l1.elf": build_guest().elf}, SECONDS)

    def restart(self) -> None:
        """Boots it again, whatever it was doing."""
        self._end()
        self._boot()

    def run(self, argv: Sequence[str], files: Mapping[str, bytes], seconds: float) -> Result:
        """Runs a program in the host as :meth:`EmulatedHost.run` does, but once.

        Raises JobFailed, EmulatorError.
        """
        return self.run_once(argv, files, seconds)

    def virsh(self, *argv: str) -> str:
        """What virsh says; raises JobFailed with it where it ends with another status than 0."""
        return self.run(["env", "LC_ALL=C", "virsh", "-q", *argv], {}, SECONDS).output.strip()

    def state(self) -> str:
        """The guest's state in virsh's words, "absent" if it is not here."""
        if DOMAIN not in self.virsh(*_LIST).split():
            return "absent"
        return self.virsh("domstate", DOMAIN)

    def console(self) -> str:
        """All that the guest has printed at this host since it came."""
        return self.run(["cat", f"{PLACE}/console"], {}, SECONDS).output

    def rounds(self) -> dict[int, int]:
        """How often each L2 has found its registers right, by what it last said at this host.

        Raises Corruption if one was not what it must be.
        """
        progress = read_console(self.console(), build_guest().symbols["contexts"])
        return {vcpu: said[-1] for vcpu, said in progress.rounds.items()}

    def wait_for_rounds(self, after: Mapping[int, int], seconds: float = PROGRESS_SECONDS) -> dict[int, int]:
        """Waits until each L2 has said something later; what they said. Raises Corruption, TimeoutError."""
        said: dict[int, int] = {}

        def reached() -> bool:
            said.update(self.rounds())
            return all(said.get(vcpu, 0) > least for vcpu, least in after.items())

        wait_until(reached, seconds, f"progress of the L2s at {self.name} after rounds {dict(after)}", 0.5)
        return said

    def clear(self) -> None:
        """Ends the guest, should it be here."""
        if self.state() != "absent":
            self.virsh("destroy", DOMAIN)

    def create(self, xml: str) -> None:
        """Has libvirt start a guest."""
        self.run(["virsh", "-q", "create", "domain.xml"], {"domain.xml": xml.encode()}, SECONDS)


@dataclass
class Journey:
    """A guest, where it is, and what its L2s have said so far."""

    here: Member
    rounds: dict[int, int]

    def go(self, there: Member, *flags: str) -> str:
        """Has virsh migrate it, and proves that its L2s go on there and no guest is left here; what virsh said.

        Raises JobFailed if virsh fails, Corruption or TimeoutError if they do not go on.
        """
        said = self.here.virsh(*migrate(there, *flags))
        self.arrived(there)
        return said

    def arrived(self, there: Member) -> None:
        """The same, where somebody else has migrated it."""
        self.rounds |= self.here.rounds()
        states = self.here.state(), there.state()
        if states != ("absent", "running"):
            raise AssertionError(f"the guest is {states[0]} at {self.here.name} and {states[1]} at {there.name}")
        self.rounds = there.wait_for_rounds(self.rounds)
        self.here = there

    def stayed(self) -> None:
        """Proves that its L2s go on where they are. Raises Corruption or TimeoutError if they do not."""
        self.rounds = self.here.wait_for_rounds(self.rounds | self.here.rounds())


def _numbered(name: str, before: int) -> str:
    return f"{name}{before + 1}" if before else name


def migrate(there: Member, *flags: str) -> Sequence[str]:
    """What virsh is told."""
    return ["migrate", "--live", *flags, DOMAIN, f"qemu+tcp://{there.name}/system"]


class Cluster:
    """Hosts that reach each other by name. Use as a context manager: all end with the block.

    :param hosts: each with its own name, a further one of the same kind with a number behind it
    :param service: a port of this machine that all of them reach
    """

    def __init__(self, *hosts: Host, service: int | None = None) -> None:
        names = [_numbered(host.name, hosts[:number].count(host)) for number, host in enumerate(hosts)]
        addresses = {name: address(number) for number, name in enumerate(names)}
        outlets: list[Wire] = [] if service is None else [outlet(service)]
        with ExitStack() as stack:
            ends = cables(len(hosts))
            for cable in chain.from_iterable(ends):
                stack.callback(cable.end.close)

            def boot(number: int) -> None:
                wires = [*ends[number], *outlets]
                self.members[number] = stack.enter_context(Member(names[number], hosts[number], addresses, wires))

            self.members: dict[int, Member] = {}
            each(boot, range(len(hosts)))
            self._stack = stack.pop_all()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, host: Host | str) -> Member:
        name = host if isinstance(host, str) else host.name
        return next(member for member in self.members.values() if member.name == name)

    def restart(self) -> None:
        """Boots all of them again, whatever they were doing."""
        each(Member.restart, self.members.values())

    def start(self, host: Host, modes: str = MODES, dirty: int = 0, spin: int = 400_000) -> Journey:
        """A guest that runs at a host, and no other anywhere; each vCPU has said something."""
        for member in self.members.values():
            member.clear()
        xml = XML.format(vcpus=len(modes), last=len(modes) - 1, modes=modes, dirty=dirty, spin=spin)
        self[host].create(xml)
        rounds = self[host].wait_for_rounds(dict.fromkeys(range(len(modes)), 0))
        return Journey(self[host], rounds)


@contextmanager
def without_npt(host: Member) -> Iterator[None]:
    """Without nested paging of its own a host offers none to an L1, and refuses an L2 that has it."""
    try:
        host.run(["sh", "-c", NPT.format(0)], {}, SECONDS)
        yield
    finally:
        host.clear()
        host.run(["sh", "-c", NPT.format(1)], {}, SECONDS)


def each(action: Callable[[_T], _Result], among: Iterable[_T]) -> list[_Result]:
    """Does it with each of them at the same time; what came of it, in their order."""
    with ThreadPoolExecutor() as pool:
        return [future.result() for future in [pool.submit(action, one) for one in among]]


def once_more(test: Callable[..., None]) -> Callable[..., None]:
    """For a test of a cluster that is its fixture ``cluster``: repeats it where a host stood still.

    As with a single host, a warning tells what the host's processor was doing; a second time is a failure. What a
    guest or libvirt does wrong is none of this, and fails at once.
    """

    @wraps(test)
    def repeated(cluster: Cluster, **fixtures: Any) -> None:
        try:
            test(cluster=cluster, **fixtures)
        except EmulatorError as silence:
            warnings.warn(f"{AGAIN}: {silence}", stacklevel=2)
            cluster.restart()
            test(cluster=cluster, **fixtures)

    return repeated
