# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of nftables as text, and a program in nft's place."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qmpfilter.daemon import nft
from qmpfilter.daemon.nft import Redirect, apply, open_listener, rules
from qmpfilter.errors import DeadlineError, HostError
from qmpfilter.relay.address import TcpAddress

DROP_IN = Path(__file__).resolve().parents[2] / nft.DROP_IN
LOCAL4, LOCAL6 = ("meta nfproto ipv4 fib daddr type local", "meta nfproto ipv6 fib daddr type local")


@pytest.mark.parametrize(
    ("host", "behind", "matches"),
    [
        ("0.0.0.0", "tcp:127.0.0.1:49152", {"ip": LOCAL4}),
        ("::", "tcp::49152", {"ip": LOCAL4, "ip6": LOCAL6}),
        ("10.9.0.2", "tcp:10.9.0.2:49152", {"ip": "ip daddr 10.9.0.2"}),
        ("fd09::2", "tcp:[fd09::2]:49152", {"ip6": "ip6 daddr fd09::2"}),
        ("::ffff:10.9.0.2", "tcp:10.9.0.2:49152", {"ip": "ip daddr 10.9.0.2"}),
    ],
)
def test_what_is_for_a_qemu_is_told_by_where_it_listens(host: str, behind: str, matches: dict[str, str]) -> None:
    redirect = Redirect(TcpAddress(host, 49152), 40351)
    assert str(redirect.behind) == behind
    for_qemu = "tcp dport 49152 tcp dport @waiting"
    assert dict(redirect.matches()) == {protocol: f"{match} {for_qemu}" for protocol, match in matches.items()}
    added = [line for line in rules({redirect: 1.5}).splitlines() if "reject" in line or "tproxy" in line]
    assert added == [
        f"add rule inet qmpfilter prerouting {match} {for_qemu} {what}"
        for protocol, match in matches.items()
        for what in (f"tproxy {protocol} to :40351 accept", "reject with tcp reset")
    ]


@pytest.mark.parametrize(
    ("host", "place", "overlap"),
    [
        ("0.0.0.0", TcpAddress("0.0.0.0", 1), True),
        ("0.0.0.0", TcpAddress("0.0.0.0", 2), False),
        ("0.0.0.0", TcpAddress("::", 1), True),
        ("0.0.0.0", TcpAddress("fd09::2", 1), False),
        ("0.0.0.0", TcpAddress("127.0.0.2", 1), True),
        ("::", TcpAddress("10.9.0.2", 1), True),
        ("10.9.0.2", TcpAddress("0.0.0.0", 1), True),
        ("10.9.0.2", TcpAddress("10.9.0.3", 1), False),
    ],
)
def test_two_qemus_that_cannot_listen_at_once(host: str, place: TcpAddress, overlap: bool) -> None:
    assert Redirect(TcpAddress(host, 1), 40351).overlaps(place) is overlap


def test_a_port_waits_as_long_as_the_longest_of_its_rules() -> None:
    one, other = (Redirect(TcpAddress(host, 49152), 40351) for host in ("10.9.0.2", "10.9.0.3"))
    script = rules({one: 0.2, other: 9.5, Redirect(TcpAddress("0.0.0.0", 49153), 40352): 900.0})
    assert "add element inet qmpfilter waiting { 49152 timeout 10s, 49153 timeout 900s }" in script


def test_without_rules_there_is_no_table() -> None:
    assert rules({}).splitlines() == ["add table inet qmpfilter", "delete table inet qmpfilter"]


def program(directory: Path, text: str) -> str:
    """A path of programs that has an nft of shell, and what it needs."""
    (directory / "nft").write_text(f"#!/bin/sh\n{text}\n")
    (directory / "nft").chmod(0o755)
    return str(directory)


def test_nft_is_given_the_rules_on_its_standard_input(tmp_path: Path) -> None:
    apply("add this\n", program(tmp_path, f'echo "$0 $@ $LC_ALL" >{tmp_path}/told; cat >>{tmp_path}/told'))
    assert (tmp_path / "told").read_text() == f"{tmp_path}/nft -f - C\nadd this\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo 'netlink: Error: cache initialization failed: Operation not permitted' >&2; exit 1", nft.DROP_IN),
        ("echo 'Unable to initialize Netlink socket: Address family not supported' >&2; exit 3", nft.DROP_IN),
        (
            "echo '-:7:1-9: Error: Could not process rule: No such file or directory' >&2; exit 1",
            "has to have nft_tproxy",
        ),
        ("echo '-:1:1-3: Error: syntax error' >&2; echo 'add' >&2; exit 1", "Error: syntax error add$"),
        ("exit 7", "it ended with status 7"),
        ("kill -9 $$", "it ended with status -9"),
        ("head -c 1000 /dev/zero | tr '\\0' x >&2; exit 1", "nft: x{300}$"),
    ],
)
def test_what_nft_says_is_told_with_what_to_do(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(HostError, match=why):
        apply("", program(tmp_path, text))


def test_nft_that_is_missing_or_no_program(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="nft is missing: install nftables"):
        apply("", str(tmp_path))
    (tmp_path / "nft").write_text("#!/nothing/there\n")
    (tmp_path / "nft").chmod(0o755)
    with pytest.raises(HostError, match="nft cannot be run"):
        apply("", str(tmp_path))


def test_nft_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "_SECONDS", 0.5)
    with pytest.raises(DeadlineError, match=r"did not end within 0\.5 s"):
        apply("", program(tmp_path, f"echo $$ >{tmp_path}/pid; exec sleep 600"))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_socket_that_may_not_take_what_is_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # No socket has that option, and the number of its error is another than without the capability.
    monkeypatch.setattr(socket, "IP_TRANSPARENT", 1 << 20)
    with pytest.raises(HostError, match=f"cannot take what is for others: .*{nft.DROP_IN}"):
        open_listener()


def test_the_drop_in_that_errors_name_is_there() -> None:
    assert "CapabilityBoundingSet=CAP_NET_ADMIN\n" in DROP_IN.read_text()
