# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU's command lines name as places where it listens."""

from __future__ import annotations

import pytest

from qmpfilter.libvirt.listeners import Listeners, own_listeners


@pytest.mark.parametrize(
    ("line", "ports", "paths"),
    [
        ("-qmp unix:/run/vm.qmp,server=on,wait=off", set(), {"/run/vm.qmp"}),
        ("--qmp-pretty unix:/run/a,,b,server", set(), {"/run/a,b"}),
        ("-qmp tcp:[::1]:4444,server=on", {4444}, set()),
        ("-monitor telnet::5555,server,nowait", {5555}, set()),
        ("-serial mon:unix:/run/mon,server -serial pty -serial file:/log", set(), {"/run/mon"}),
        ("-gdb tcp::1235", {1235}, set()),
        ("-gdb chardev:gdb", set(), set()),
        ("-S -s", {1234}, set()),
        ("-chardev socket,id=m,path=/run/m,server=on -mon chardev=m,mode=control", set(), {"/run/m"}),
        ("-chardev socket,id=m,host=0.0.0.0,port=6000,server=on,wait=off", {6000}, set()),
        ("-chardev socket,id=m,port=ssh,server=on", set(), set()),
        ("-chardev socket,id=m,fd=9,server=on", set(), set()),
        ("-vnc :3", {5903}, set()),
        ("-vnc 127.0.0.1:3,websocket=on", {5903, 5703}, set()),
        ("-vnc 127.0.0.1:3,websocket=7000,audiodev=a", {5903, 7000}, set()),
        ("-spice port=5910,tls-port=5911,addr=127.0.0.1", {5910, 5911}, {"127.0.0.1"}),
        ("-netdev socket,id=n,listen=:7001", {7001}, set()),
        ("-netdev user,id=n,hostfwd=tcp:127.0.0.1:2222-:22", {2222}, set()),
        ("-netdev stream,id=n,server=on,addr.type=unix,addr.path=/run/n", set(), {"/run/n"}),
        ('-netdev {"type":"stream","server":true,"addr":{"type":"inet","host":"::","port":"7002"}}', {7002}, set()),
        ("-netdev {nonsense -chardev", set(), set()),
        ("-incoming tcp:0.0.0.0:49152", set(), set()),
        ("-name unix:/run/vm -incoming unix:/run/incoming", set(), set()),
    ],
)
def test_what_is_named(line: str, ports: set[int], paths: set[str]) -> None:
    found = own_listeners(["qemu-system-x86_64", *line.split(), "-uuid", "0a7f"])
    assert (found.ports, found.paths) == (ports, paths)


def test_a_display_at_a_path() -> None:
    assert own_listeners(["qemu", "-vnc", "unix:/run/vnc"]) == Listeners({5900}, {"/run/vnc"})
