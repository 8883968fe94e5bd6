# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt-python, wrapped once: every call in a thread of its own and with a deadline, because any may block.

The binding is imported when a connection is opened. Source of the numbers: libvirt 11.3 include/libvirt/virterror.h
and libvirt-domain.h, whose values do not change.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from qmpfilter.errors import DeadlineError, HostError
from qmpfilter.libvirt.loop import EventThread
from qmpfilter.libvirt.metadata import NAMESPACE, PREFIX, DomainPolicy
from qmpfilter.qmp.pages import command_for, parse_page

__all__ = ["CALL_SECONDS", "Connection", "Domain", "LibvirtError", "State", "binding", "within"]

CALL_SECONDS: Final = 30.0
"""For one call that only asks or sets."""

_OPEN_SECONDS: Final = 60.0
_KEEPALIVE: Final = (5, 6)
_NO_DOMAIN: Final = 42
_NO_METADATA: Final = 80
_ELEMENT: Final = 2
_LIVE, _CONFIG = 1, 2
_COMPLETED: Final = 1
_HUMAN: Final = 1
_STATES: Final = ("no state", "running", "blocked", "paused", "shutting down", "shut off", "crashed", "suspended")
_INACTIVE: Final = ("shut off", "crashed", "absent")
_Value = TypeVar("_Value")


class LibvirtError(HostError):
    """libvirt says no.

    :ivar code: its number of the error
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class _Domain(Protocol):
    """What is used of ``libvirt.virDomain``."""

    def name(self) -> str: ...
    def UUIDString(self) -> str: ...
    def state(self) -> Sequence[int]: ...
    def isPersistent(self) -> int: ...
    def jobStats(self, flags: int) -> Mapping[str, Any]: ...
    def abortJob(self) -> int: ...
    def suspend(self) -> int: ...
    def migrateStartPostCopy(self) -> int: ...
    def migrate3(self, destination: _Connection, parameters: Mapping[str, Any], flags: int) -> _Domain: ...
    def migrateToURI3(self, uri: str, parameters: Mapping[str, Any], flags: int) -> int: ...
    def metadata(self, kind: int, uri: str, flags: int) -> str: ...
    def setMetadata(self, kind: int, text: str | None, key: str, uri: str, flags: int) -> int: ...


class _Connection(Protocol):
    """What is used of ``libvirt.virConnect``."""

    def close(self) -> int: ...
    def getURI(self) -> str: ...
    def setKeepAlive(self, interval: int, count: int) -> int: ...
    def lookupByName(self, name: str) -> _Domain: ...
    def lookupByUUIDString(self, text: str) -> _Domain: ...
    def lookupByID(self, number: int) -> _Domain: ...
    def isAlive(self) -> int: ...
    def registerCloseCallback(self, call: Callable[..., None], opaque: object) -> int: ...
    def domainEventRegisterAny(
        self, domain: _Domain | None, number: int, call: Callable[..., None], opaque: object
    ) -> int: ...


def binding(name: str = "libvirt") -> Any:
    """A module of libvirt-python, which says nothing by itself.

    :raises HostError: this Python has none
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise HostError(
            f"{error}: libvirt takes libvirt-python, the distribution's python3-libvirt or qmpfilter[libvirt]"
        ) from error
    if name == "libvirt":
        # By default it prints every error.
        module.registerErrorHandler(lambda *_: None, None)
    return module


@dataclass(frozen=True, slots=True)
class State:
    """What a libvirt says of a domain.

    :param name: in virsh's words; "absent" where it has no such domain
    :param reason: libvirt's number
    """

    name: str
    reason: int = 0

    @property
    def active(self) -> bool:
        """There is a QEMU."""
        return self.name not in _INACTIVE

    @property
    def runs(self) -> bool:
        """Its vCPUs run."""
        return self.name in ("running", "blocked")


class Connection:
    """An open connection.

    :ivar uri: libvirt's own form of where it goes
    """

    def __init__(self, raw: _Connection, uri: str) -> None:
        self.raw = raw
        self.uri = uri

    @classmethod
    async def open(cls, uri: str | None, seconds: float = _OPEN_SECONDS) -> Connection:
        """Connect.

        :param uri: None for libvirt's default
        :raises HostError: there is no binding, or nobody answers there in time
        """
        shown = uri or "the default libvirt"
        module = binding()
        EventThread.start_once(binding)

        def connect() -> tuple[_Connection, str]:
            raw: _Connection = module.open(uri)
            # What has no connection, as a driver within this process, needs none that lives.
            with contextlib.suppress(module.libvirtError):
                raw.setKeepAlive(*_KEEPALIVE)
            return raw, raw.getURI()

        return cls(*await within(seconds, f"connecting to {shown}", connect))

    async def close(self) -> None:
        """Whatever the other end does."""
        with contextlib.suppress(HostError):
            await within(CALL_SECONDS, "closing the connection", self.raw.close)

    async def domain(self, name: str) -> Domain:
        """A domain by its UUID, its name, or the number of a running one.

        :raises LibvirtError: there is none
        """

        def look_up() -> _Domain:
            with contextlib.suppress(ValueError):
                return self.raw.lookupByUUIDString(str(uuid.UUID(name)))
            try:
                return self.raw.lookupByName(name)
            except binding().libvirtError:
                if not name.isdigit():
                    raise
                return self.raw.lookupByID(int(name))

        def found() -> Domain:
            raw = look_up()
            return Domain(raw, raw.name(), raw.UUIDString())

        return await within(CALL_SECONDS, f"looking for the domain {name}", found)

    async def state_of(self, domain: str) -> State:
        """Of a domain by its UUID.

        :raises HostError: it does not say
        """

        def ask() -> Sequence[int]:
            return self.raw.lookupByUUIDString(domain).state()

        try:
            number, reason = await within(CALL_SECONDS, "asking for the domain's state", ask)
        except LibvirtError as error:
            if error.code == _NO_DOMAIN:
                return State("absent")
            raise
        return State(_STATES[number] if number < len(_STATES) else str(number), reason)


class Domain:
    """A domain that a connection knows. Every method raises HostError where libvirt says no, or nothing in time.

    :ivar name: its name
    :ivar uuid: its UUID
    """

    def __init__(self, raw: _Domain, name: str, uuid: str) -> None:
        self.name = name
        self.uuid = uuid
        self._raw = raw

    async def job(self, *, completed: bool = False) -> Mapping[str, Any]:
        """The numbers of its job, or of its last one."""
        return await self._ask("for its job", lambda: self._raw.jobStats(_COMPLETED if completed else 0))

    async def abort_job(self) -> None:
        """Have the job given up."""
        await self._ask("to give up its job", self._raw.abortJob)

    async def suspend(self) -> None:
        """Stop its vCPUs."""
        await self._ask("to stop", self._raw.suspend)

    async def start_postcopy(self) -> None:
        """Have a migration that may do so go on as postcopy."""
        await self._ask("to begin postcopy", self._raw.migrateStartPostCopy)

    async def migrate(
        self, destination: Connection | str, parameters: Mapping[str, Any], flags: int
    ) -> None:  # fmt: skip
        """Until it is over, however long that takes.

        :param destination: a connection; a URI where the source's libvirt connects itself
        """

        def move() -> object:
            if isinstance(destination, str):
                return self._raw.migrateToURI3(destination, parameters, flags)
            return self._raw.migrate3(destination.raw, parameters, flags)

        await within(None, f"migrating {self.name}", move)

    async def policy(self) -> DomainPolicy:
        """What it asks for in its metadata.

        :raises PolicyError: what stands there cannot be understood
        """
        try:
            text = await self._ask("for its policy", lambda: self._raw.metadata(_ELEMENT, NAMESPACE, 0))
        except LibvirtError as error:
            if error.code == _NO_METADATA:
                return DomainPolicy()
            raise
        return DomainPolicy.from_xml(text)

    async def set_policy(self, policy: DomainPolicy) -> None:
        """Have it ask for that: as it runs, and as it is defined."""
        text = policy.to_xml() if policy else None

        def change() -> object:
            live = 0 if _STATES[self._raw.state()[0]] in _INACTIVE else _LIVE
            config = _CONFIG if self._raw.isPersistent() else 0
            return self._raw.setMetadata(_ELEMENT, text, PREFIX, NAMESPACE, live | config)

        try:
            await self._ask("to change its policy", change)
        except LibvirtError as error:
            if text is not None or error.code != _NO_METADATA:
                raise

    async def read_pages(self, addresses: Sequence[int]) -> dict[int, bytes]:
        """Pages of its memory, all or none, while it stands still.

        :raises HostError: it runs, or one of them cannot be read
        """
        qemu = binding("libvirt_qemu")

        def ask(address: int) -> str:
            return str(qemu.qemuMonitorCommand(self._raw, command_for(address), _HUMAN))

        def read() -> dict[int, bytes]:
            self._check_stopped(qemu)
            pages = {address: parse_page(address, ask(address)) for address in addresses}
            self._check_stopped(qemu)
            return pages

        return await self._ask("for guest memory", read)

    async def ask_monitor(self, line: str) -> str:
        """What QEMU's human monitor answers; libvirt then notes that somebody spoke with it (a taint)."""
        qemu = binding("libvirt_qemu")
        return await self._ask("for QEMU's word", lambda: str(qemu.qemuMonitorCommand(self._raw, line, _HUMAN)))

    def _check_stopped(self, qemu: Any) -> None:
        if "paused" not in str(qemu.qemuMonitorCommand(self._raw, "info status", _HUMAN)):
            raise HostError(f"the domain {self.name} runs, so its memory cannot be relied on")

    async def _ask(self, what: str, call: Callable[[], _Value]) -> _Value:
        return await within(CALL_SECONDS, f"asking the domain {self.name} {what}", call)


async def within(seconds: float | None, what: str, call: Callable[[], _Value]) -> _Value:
    """Call in a thread of its own, which is left to itself when it takes too long.

    :raises DeadlineError: it does
    :raises LibvirtError: libvirt says no
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Value] = loop.create_future()

    def settle(value: _Value | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(value)  # type: ignore[arg-type]  # without an error it is one
        else:
            future.set_exception(error)

    def work() -> None:
        value: _Value | None = None
        failed: BaseException | None = None
        try:
            value = call()
        except Exception as error:
            failed = error
        # A loop that has ended waits for nothing any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value, failed)

    threading.Thread(target=work, name=what, daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            return await future
    except TimeoutError:
        raise DeadlineError(f"libvirt: {what} took longer than {seconds:g} s") from None
    except binding().libvirtError as error:
        raise LibvirtError(f"libvirt: {error.get_error_message()}", error.get_error_code()) from error
