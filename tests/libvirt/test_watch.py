# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of a libvirt that pretends, and what is made of them."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable

import pytest

from qmpfilter.libvirt import watch as watching
from qmpfilter.libvirt.watch import watch
from tests.libvirt.fake import SOURCE, UUID, FakeDomain, FakeLibvirt

SECONDS = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def test_events_are_heard_and_libvirt_may_go_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = FakeLibvirt()
    world.install(monkeypatch)
    monkeypatch.setattr(watching, "_FIRST_WAIT", 0.01)
    caplog.set_level(logging.INFO)
    heard: list[str] = []

    async def scenario() -> None:
        task = asyncio.create_task(watch(SOURCE, lambda happening: heard.append(str(happening))))
        await until(lambda: "events of" in caplog.text)
        domain = FakeDomain(world, SOURCE)
        world.callbacks[0](None, domain, 3, 1, None)
        world.callbacks[20](None, domain, 2, None)
        world.callbacks[21](None, domain, {"time_elapsed": 9}, None)
        world.callbacks["MIGRATION"](None, domain, "MIGRATION", 1, 2, '{"status": "setup"}', None)
        await until(lambda: len(heard) == 4)
        world.away.add(SOURCE)
        world.callbacks["close"](None, 1, None)
        await until(lambda: world.tried > 3)
        world.away.clear()
        await until(lambda: caplog.text.count("are heard") == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    told = ("suspended (migrated)", "migration iteration 2", "job completed in 9 ms", "QEMU's migration: setup")
    assert heard == [f"domain guest ({UUID}): {what}" for what in told]
    assert caplog.text.count("are not heard") == 1


def test_without_the_binding_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "libvirt_qemu", None)
    asyncio.run(watch(SOURCE, lambda _: None))
    assert caplog.text.count("events of libvirt are not heard") == 1
    assert "qmpfilter[libvirt]" in caplog.text
