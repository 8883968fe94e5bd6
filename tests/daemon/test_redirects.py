# SPDX-License-Identifier: GPL-2.0-or-later
"""Which rules hold, as sessions begin and end, with nft's part made up."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

import pytest

from qmpfilter.daemon import redirects
from qmpfilter.daemon.nft import Redirect, rules
from qmpfilter.daemon.redirects import Redirects
from qmpfilter.daemon.sessions import Origin
from qmpfilter.errors import DeadlineError, HostError
from qmpfilter.relay.address import TcpAddress, UnixAddress

WHERE = TcpAddress("0.0.0.0", 49152)
OURS = Redirect(WHERE, 40351)
SOURCE = 600.0
WHOLE = SOURCE + 300.0
CAME, NOBODY_CAME = {"session": "s", "channels": ["main"]}, {"session": "s", "channels": []}


class Kernel:
    """Stands for nft, the kernel and the clock."""

    def __init__(self) -> None:
        self.script = ""
        self.calls = 0
        self.now = 1000.0
        self.error: HostError | None = None
        self.redirects = Redirects(self.run, lambda: self.now)

    def run(self, script: str) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        self.script = script

    async def settled(self, expected: dict[Redirect, float]) -> None:
        """What is kept by itself comes to be so."""
        async with asyncio.timeout(10):
            while self.script != rules(expected):
                await asyncio.sleep(0.001)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def during(kernel: Kernel, what: Callable[[], Awaitable[None]]) -> None:
    """Something, while rules are kept."""

    async def both() -> None:
        keeping = asyncio.create_task(kernel.redirects.keep())
        try:
            await what()
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(both())


async def lead(kernel: Kernel, session: str = "s", uuid: str = "u", redirect: Redirect | None = OURS) -> None:
    async with kernel.redirects.leading(session, uuid, redirect, SOURCE):
        pass


def test_a_rule_is_there_before_its_session_and_goes_with_it(kernel: Kernel) -> None:
    async def act() -> None:
        async with kernel.redirects.leading("s", "u", OURS, SOURCE):
            assert kernel.script == rules({OURS: WHOLE})
        assert kernel.calls == 1
        kernel.redirects.ended({"session": "another", "channels": ["main"]})
        kernel.redirects.ended(CAME)
        await kernel.settled({})

    during(kernel, act)


def test_what_needs_no_rule_never_calls_nft(kernel: Kernel) -> None:
    async def act() -> None:
        await lead(kernel, redirect=None)
        await kernel.redirects.vacate([WHERE, UnixAddress("/a")])
        kernel.redirects.forget("u")
        kernel.redirects.ended(CAME)
        await kernel.redirects.close()

    during(kernel, act)
    assert kernel.calls == 0


@pytest.mark.parametrize("error", [HostError("no"), DeadlineError("late"), asyncio.CancelledError()])
def test_a_session_that_does_not_begin_leaves_no_rule(kernel: Kernel, error: BaseException) -> None:
    async def act() -> None:
        async with kernel.redirects.leading("s", "u", OURS, SOURCE):
            raise error

    with pytest.raises(type(error)):
        asyncio.run(act())
    assert kernel.script == rules({})


def test_a_rule_that_cannot_be_set_is_not_kept(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    kernel.error = DeadlineError("nft did not end")
    with pytest.raises(HostError, match="nft did not end"):
        asyncio.run(lead(kernel))
    assert "end by themselves" in caplog.text
    kernel.error = None
    asyncio.run(lead(kernel, "other", redirect=Redirect(TcpAddress("0.0.0.0", 49153), 40352)))
    assert "49152" not in kernel.script


def test_without_a_source_it_stays_until_qemu_is_gone(kernel: Kernel) -> None:
    async def act() -> None:
        await lead(kernel)
        kernel.redirects.ended(NOBODY_CAME)
        kernel.now += 100
        other = Redirect(TcpAddress("0.0.0.0", 49153), 40352)
        await lead(kernel, "other", "v", other)
        assert kernel.script == rules({OURS: WHOLE - 100, other: WHOLE})
        kernel.redirects.forget("u")
        await kernel.settled({other: WHOLE})

    during(kernel, act)


@pytest.mark.parametrize(
    ("where", "stays"), [(WHERE, False), (TcpAddress("10.0.0.1", 49152), False), (TcpAddress("::", 49153), True)]
)
def test_a_qemu_at_the_same_port_has_nothing_of_the_one_before(
    kernel: Kernel, where: TcpAddress, stays: bool
) -> None:
    async def act() -> None:
        await lead(kernel)
        kernel.redirects.ended(NOBODY_CAME)
        await kernel.redirects.vacate([where])

    asyncio.run(act())
    assert kernel.script == rules({OURS: WHOLE} if stays else {})


def test_while_it_is_needed_it_is_renewed_and_then_ends(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirects, "_RENEW", 0.01)

    async def act() -> None:
        await lead(kernel)
        kernel.script = ""
        await kernel.settled({OURS: WHOLE})
        kernel.redirects.ended(NOBODY_CAME)
        kernel.now += 10
        await kernel.settled({OURS: WHOLE - 10})
        kernel.now += WHOLE
        await kernel.settled({})

    during(kernel, act)


def test_what_could_not_be_removed_is_tried_again(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redirects, "_RENEW", 0.01)

    async def act() -> None:
        await lead(kernel)
        kernel.error = HostError("not now")
        kernel.redirects.ended(CAME)
        async with asyncio.timeout(10):
            while "not now" not in caplog.text:
                await asyncio.sleep(0.001)
        kernel.error = None
        await kernel.settled({})

    caplog.set_level(logging.WARNING)
    during(kernel, act)


def test_a_daemon_begins_with_what_runs_and_leaves_what_runs(kernel: Kernel) -> None:
    def origin(name: str, listen: str, port: int) -> Origin:
        return Origin(name, 1, 1, "2026-01-01", listen, "c", "annex", "enforce", "me", f"of {name}", port)

    ran = [
        origin("s", str(WHERE), OURS.port), origin("old", "tcp:[::]:49153", 0), origin("unix", "unix:/a", 0),
        origin("other", "tcp:[fd09::2]:49154", 40352), origin("nonsense", "nowhere", 40353),
    ]  # fmt: skip

    async def act() -> None:
        await kernel.redirects.adopt(ran, SOURCE)
        assert kernel.script == rules({OURS: WHOLE, Redirect(TcpAddress("fd09::2", 49154), 40352): WHOLE})
        kernel.redirects.ended({"session": "other"})
        await kernel.redirects.close()

    asyncio.run(act())
    assert kernel.script == rules({OURS: WHOLE})


def test_what_a_daemon_without_sessions_finds_is_removed(kernel: Kernel) -> None:
    asyncio.run(kernel.redirects.adopt([], SOURCE))
    assert re.fullmatch(r"add table (.*)\ndelete table \1\n", kernel.script)
