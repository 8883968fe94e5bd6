# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of nftables with a real kernel, in networks of the tests' own: who comes where, and what is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from qmpfilter.daemon.nft import DROP_IN, Redirect, apply, open_listener, rules
from qmpfilter.relay.address import TcpAddress
from qmpfilter.relay.deadline import Deadline
from tests.helpers.daemon import DaemonProcess
from tests.helpers.migration import SHUT_OK, STREAM, everything, exactly, sending
from tests.lab.inhost.waiting import wait_until
from tests.lab.networks import made_in, run, two_networks, within

pytestmark = pytest.mark.lab

SECONDS: Final = 30.0
# Where a QEMU listens, and which of its host's addresses lead to it.
PLACES: Final = {
    "0.0.0.0": ("10.9.0.2",),
    "::": ("10.9.0.2", "fd09::2"),
    "10.9.0.2": ("10.9.0.2",),
    "fd09::2": ("fd09::2",),
}
WAYS: Final = [(place, host) for place, hosts in PLACES.items() for host in hosts]
CONFIG: Final = 'verdict = "off"\n[ingress]\nnft = true\nrequired = true\n'


@pytest.fixture(scope="module")
def networks() -> Iterator[tuple[str, str]]:
    """Of the source and of the destination."""
    with two_networks() as names:
        yield names


@pytest.fixture
def here(networks: tuple[str, str]) -> Iterator[str]:
    """The destination's, where nothing is left."""
    yield networks[1]
    assert tables(networks[1]) == ""


def tables(network: str) -> str:
    return run(*within(network, "nft", "list", "tables"))


def listen(network: str, place: str) -> socket.socket:
    """As QEMU does."""
    both = place == "::"
    family = socket.AF_INET6 if ":" in place else socket.AF_INET
    listener = made_in(network, lambda: socket.create_server((place, 0), family=family, dualstack_ipv6=both))
    listener.settimeout(SECONDS)
    return listener


def dial(network: str, host: str, listener: socket.socket) -> socket.socket:
    """From that network to the port at which one listens."""
    port = listener.getsockname()[1]
    return made_in(network, lambda: socket.create_connection((host, port), SECONDS))


def goes_to(connection: socket.socket, listener: socket.socket) -> socket.socket:
    """The other end of the connection, which came there."""
    end, _ = listener.accept()
    end.settimeout(SECONDS)
    assert end.getpeername()[1] == connection.getsockname()[1]
    return end


@contextmanager
def rule(
    network: str, place: str, qemu: socket.socket, seconds: float = 60
) -> Iterator[tuple[Redirect, socket.socket]]:
    """A rule for a QEMU, and where it leads."""
    with made_in(network, open_listener) as ours:
        ours.settimeout(SECONDS)
        redirect = Redirect(TcpAddress(place, qemu.getsockname()[1]), ours.getsockname()[1])
        made_in(network, lambda: apply(rules({redirect: seconds})))
        try:
            yield redirect, ours
        finally:
            made_in(network, lambda: apply(rules({})))


@pytest.mark.parametrize(("place", "host"), WAYS)
def test_a_source_comes_here_and_what_goes_on_comes_to_qemu(
    networks: tuple[str, str], here: str, place: str, host: str
) -> None:
    with (
        listen(here, place) as qemu,
        rule(here, place, qemu) as (redirect, ours),
        dial(networks[0], host, qemu) as source,
        goes_to(source, ours) as end,
        made_in(here, lambda: redirect.behind.connect(Deadline(SECONDS, "QEMU"))) as onward,
    ):
        goes_to(onward, qemu).close()
        # A connection that was made needs no rule.
        made_in(here, lambda: apply(rules({})))
        source.sendall(b"there")
        assert exactly(end, 5) == b"there"
        end.sendall(b"back")
        assert exactly(source, 4) == b"back"
        with dial(networks[0], host, qemu) as direct:
            goes_to(direct, qemu).close()


@pytest.mark.parametrize(("place", "host"), WAYS)
def test_where_nobody_listens_any_more_a_source_is_refused(
    networks: tuple[str, str], here: str, place: str, host: str
) -> None:
    with listen(here, place) as qemu, rule(here, place, qemu) as (_, ours):
        ours.close()
        with pytest.raises(ConnectionRefusedError):
            dial(networks[0], host, qemu)


@pytest.mark.parametrize(("place", "host"), WAYS)
def test_a_rule_ends_by_itself(networks: tuple[str, str], here: str, place: str, host: str) -> None:
    with listen(here, place) as qemu, rule(here, place, qemu, 1) as (_, ours):
        wait_until(
            lambda: "elements" not in run(*within(here, "nft", "list", "table", "inet", "qmpfilter")), SECONDS, ""
        )
        ours.close()
        with dial(networks[0], host, qemu) as direct:
            goes_to(direct, qemu).close()


def test_other_ports_and_other_addresses_are_left_alone(networks: tuple[str, str], here: str) -> None:
    run(*within(here, "ip", "address", "add", "10.9.0.3/24", "dev", "cable"))
    try:
        with listen(here, "10.9.0.2") as qemu, rule(here, "10.9.0.2", qemu), listen(here, "0.0.0.0") as other:
            port = qemu.getsockname()[1]
            with made_in(here, lambda: socket.create_server(("10.9.0.3", port))) as neighbour:
                neighbour.settimeout(SECONDS)
                for host, listener in (("10.9.0.3", neighbour), ("10.9.0.2", other)):
                    with dial(networks[0], host, listener) as connection:
                        goes_to(connection, listener).close()
    finally:
        run(*within(here, "ip", "address", "delete", "10.9.0.3/24", "dev", "cable"))


def test_a_firewall_that_lets_a_source_in_to_qemu_lets_it_in_here(networks: tuple[str, str], here: str) -> None:
    with listen(here, "::") as qemu:
        firewall = f"""table inet firewall {{
            chain input {{
                type filter hook input priority filter; policy drop;
                iif lo accept
                icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
                tcp dport {qemu.getsockname()[1]} accept
            }}
        }}"""
        made_in(here, lambda: apply(firewall))
        try:
            with rule(here, "::", qemu) as (_, ours):
                for host in PLACES["::"]:
                    with dial(networks[0], host, qemu) as source:
                        goes_to(source, ours).close()
        finally:
            made_in(here, lambda: apply("delete table inet firewall"))


@contextmanager
def third_network(router: str, source: str) -> Iterator[str]:
    """Behind the router, with the address 10.10.0.2."""
    name = f"{router}-c"
    run("ip", "netns", "add", name)
    try:
        run(*within(router, "ip", "link", "add", "more", "type", "veth", "peer", "name", "more", "netns", name))
        for network, address in ((router, "10.10.0.1/24"), (name, "10.10.0.2/24")):
            run(*within(network, "ip", "address", "add", address, "dev", "more"))
            run(*within(network, "ip", "link", "set", "more", "up"))
        made_in(router, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        run(*within(name, "ip", "route", "add", "default", "via", "10.10.0.1"))
        run(*within(source, "ip", "route", "add", "10.10.0.0/24", "via", "10.9.0.2"))
        yield name
    finally:
        run("ip", "netns", "delete", name)
        run(*within(source, "ip", "route", "flush", "10.10.0.0/24"))


def test_what_this_host_routes_to_another_is_left_alone(networks: tuple[str, str], here: str) -> None:
    with third_network(here, networks[0]) as there, listen(here, "0.0.0.0") as qemu, rule(here, "0.0.0.0", qemu):
        port = qemu.getsockname()[1]
        with made_in(there, lambda: socket.create_server(("10.10.0.2", port))) as other:
            other.settimeout(SECONDS)
            with dial(networks[0], "10.10.0.2", other) as connection:
                goes_to(connection, other).close()


class Waiting:
    """A domain whose QEMU, made up, waits for it. Use as a context manager."""

    def __init__(self, network: str, place: str) -> None:
        self.uuid = str(uuid.uuid4())
        self._network = network
        self.listener = listen(network, place)
        self.port = self.listener.getsockname()[1]

    def __enter__(self) -> Waiting:
        named = ["-uuid", self.uuid, "-incoming", "defer"]
        self._process = subprocess.Popen(
            within(self._network, sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", *named),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[self.listener.fileno()],
        )  # fmt: skip
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        with self._process:
            pass

    def hook(self, daemon: DaemonProcess, operation: str, sub: str) -> dict[str, Any]:
        """What libvirt's hook is answered."""
        xml = f"<domain><name>guest</name><uuid>{self.uuid}</uuid></domain>"
        return daemon.ask("hook", operation=operation, sub=sub, extra="-", domain="guest", xml=xml)

    def begin(self, daemon: DaemonProcess) -> dict[str, Any]:
        """What libvirt's hook is answered when QEMU waits for the guest that was announced."""
        self.hook(daemon, "migrate", "begin")
        return self.hook(daemon, "started", "begin")

    def session(self, daemon: DaemonProcess) -> str:
        """The one that waits for its source."""
        assert self.begin(daemon) == {}
        [session] = daemon.ask("sessions")["running"]
        assert (session["stage"], session["listen"].rpartition(":")[2]) == ("waiting", str(self.port))
        return str(session["session"])

    def take(self, source: socket.socket) -> None:
        """The guest arrives, by way of the filter."""
        sender = sending(source, STREAM)
        end, _ = self.listener.accept()
        with end:
            end.settimeout(SECONDS)
            assert len(exactly(end, len(STREAM))) == len(STREAM)
            end.sendall(SHUT_OK)
        assert everything(source) == SHUT_OK
        sender.join(SECONDS)


@contextmanager
def daemon_at(network: str, directory: Path, *before: str, config: str = CONFIG) -> Iterator[DaemonProcess]:
    with DaemonProcess(directory, config, before=within(network, *before)) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def started(networks: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with daemon_at(networks[1], tmp_path_factory.mktemp("daemon")) as process:
        yield process


@pytest.fixture
def daemon(started: DaemonProcess) -> DaemonProcess:
    """The one of these tests, and its next if that was ended."""
    return started.revived()


def none_left(network: str) -> None:
    wait_until(lambda: tables(network) == "", SECONDS, "the rules to go")


@pytest.mark.parametrize(("place", "host"), WAYS)
def test_a_guest_arrives_through_a_session_and_its_rule_is_gone(
    networks: tuple[str, str], here: str, daemon: DaemonProcess, place: str, host: str
) -> None:
    with Waiting(here, place) as domain:
        session = domain.session(daemon)
        with dial(networks[0], host, domain.listener) as source:
            domain.take(source)
        report = daemon.report(session)
        assert (report["outcome"], report["edited_vcpus"], report["domain"]["uuid"]) == ("completed", 1, domain.uuid)
        none_left(here)


def expires(network: str) -> int:
    """Seconds after which the one element ends."""
    told = json.loads(run(*within(network, "nft", "-j", "list", "set", "inet", "qmpfilter", "waiting")))
    [element] = next(one["set"] for one in told["nftables"] if "set" in one)["elem"]
    return int(element["elem"]["expires"])


def test_a_daemon_that_is_killed_leaves_what_ends_and_the_next_goes_on(
    networks: tuple[str, str], here: str, daemon: DaemonProcess
) -> None:
    with Waiting(here, "::") as domain:
        session = domain.session(daemon)
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait(SECONDS)
        assert 600 < expires(here) <= 900
        daemon.start()
        with dial(networks[0], "fd09::2", domain.listener) as source:
            domain.take(source)
        assert daemon.report(session)["outcome"] == "completed"
        none_left(here)


def test_what_a_killed_daemon_left_is_removed_by_the_next(
    networks: tuple[str, str], here: str, daemon: DaemonProcess
) -> None:
    with Waiting(here, "0.0.0.0") as domain:
        domain.session(daemon)
        [running] = daemon.ask("sessions")["running"]
        for pid in (daemon.process.pid, running["pid"]):
            os.kill(pid, signal.SIGKILL)
        daemon.process.wait(SECONDS)
        assert tables(here) != ""
        with pytest.raises(ConnectionRefusedError):
            dial(networks[0], "10.9.0.2", domain.listener)
        daemon.start()
        assert tables(here) == ""


def test_a_source_does_not_pass_by_a_worker_that_died(
    networks: tuple[str, str], here: str, daemon: DaemonProcess
) -> None:
    with Waiting(here, "0.0.0.0") as domain:
        session = domain.session(daemon)
        [running] = daemon.ask("sessions")["running"]
        os.kill(running["pid"], signal.SIGKILL)
        assert daemon.report(session)["outcome"] == "failed"
        with pytest.raises(ConnectionRefusedError):
            dial(networks[0], "10.9.0.2", domain.listener)
        assert domain.hook(daemon, "release", "end") == {}
        none_left(here)


def test_with_the_switch_on_a_source_comes_to_qemu(
    networks: tuple[str, str], here: str, daemon: DaemonProcess
) -> None:
    daemon.ask("off")
    try:
        with Waiting(here, "0.0.0.0") as domain:
            assert domain.begin(daemon) == {}
            with dial(networks[0], "10.9.0.2", domain.listener) as source:
                goes_to(source, domain.listener).close()
    finally:
        daemon.ask("on")


def test_a_daemon_that_ends_leaves_no_rule_that_no_session_needs(here: str, tmp_path: Path) -> None:
    with daemon_at(here, tmp_path) as daemon, Waiting(here, "0.0.0.0") as domain:
        session = domain.session(daemon)
        daemon.ask("stop", session=session)
        daemon.report(session)
        assert tables(here) != ""
        daemon.process.terminate()
        assert daemon.process.wait(SECONDS) == 0


@pytest.mark.parametrize("required", [False, True], ids=["not required", "required"])
def test_without_the_capability_it_says_which_and_leaves_nothing(
    networks: tuple[str, str], here: str, tmp_path: Path, required: bool
) -> None:
    config = CONFIG.replace("required = true", f"required = {str(required).lower()}")
    without = ("setpriv", "--bounding-set=-net_admin,-net_raw")
    with daemon_at(here, tmp_path, *without, config=config) as daemon, Waiting(here, "0.0.0.0") as domain:
        answer = domain.begin(daemon)
        assert DROP_IN in (answer["veto"] if required else daemon.log())
        assert answer.keys() == ({"veto"} if required else set())
        assert daemon.ask("sessions")["running"] == []
        with dial(networks[0], "10.9.0.2", domain.listener) as source:
            goes_to(source, domain.listener).close()
