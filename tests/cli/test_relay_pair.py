# SPDX-License-Identifier: GPL-2.0-or-later
"""Two `qmpfilter relay` as a pair, processes of their own, between a made-up source and a made-up destination."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from qmpfilter.cli.policy_options import EXIT_VETOED
from qmpfilter.relay.pair_protocol import MAGIC
from qmpfilter.relay.session import SHUT_FAILED
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.version import Version
from tests.helpers.migration import SHUT_OK, STREAM, everything, exactly, sending
from tests.helpers.pki import Authority
from tests.lab.inhost.waiting import listens, wait_until

pytestmark = pytest.mark.lab

SECONDS = 30.0
MULTIFD: Final = b"\x11\x22\x33\x44" + bytes(60)
GOOD: Final = HostFacts(kernel=Version.parse("6.12.1"), formats=("legacy", "annex"))
NO_NESTING: Final = HostFacts(parameters={"kvm_amd": {"nested": "0"}}, formats=("legacy", "annex"))
TLS: Final = ("--pair-encryption", "always")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pki")
    return Authority(root / "authority").host(root / "host")


class Both:
    """The processes, a source and a destination."""

    def __init__(self, directory: Path, between: str) -> None:
        self._directory = directory
        self._host = directory / "host.json"
        self.host(GOOD)
        self.between = between
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.settimeout(SECONDS)
        self.listener.bind(str(directory / "incoming"))
        self.listener.listen()
        self._open: list[socket.socket] = [self.listener]
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def host(self, facts: HostFacts) -> None:
        """What is known of the destination's host, there."""
        self._host.write_text(json.dumps(facts.to_json()))

    def start(self, *both: str, source: tuple[str, ...] = (), destination: tuple[str, ...] = ()) -> None:
        self.start_destination(*both, *destination)
        self._start("source", f"unix:{self._directory / 'relay'}", self.between, *both, *source)
        wait_until(lambda: listens(self._directory / "relay"), SECONDS, "the source's filter", 0.02)

    def start_destination(self, *options: str) -> None:
        self._start(
            "destination", self.between, f"unix:{self._directory / 'incoming'}", "--host", str(self._host), *options
        )

    def _start(self, name: str, *arguments: str) -> None:
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", "qmpfilter", "relay", *arguments, "--report", str(self._directory / name)],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_until_listening(self) -> None:
        """Before anything is sent: a filter that connects does so once."""
        kind, _, rest = self.between.removeprefix("pair:").partition(":")
        if kind == "unix":
            wait_until(lambda: listens(Path(rest)), SECONDS, "the destination's filter", 0.02)
        else:
            wait_until(lambda: _port_listens(int(rest.rpartition(":")[2])), SECONDS, "the destination's filter", 0.02)

    def dial(self) -> socket.socket:
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(SECONDS)
        end.connect(str(self._directory / "relay"))
        self._open.append(end)
        return end

    def accept(self) -> socket.socket:
        end = self.listener.accept()[0]
        end.settimeout(SECONDS)
        self._open.append(end)
        return end

    def ended(self, name: str) -> tuple[int, str, str]:
        """Exit status and what it said, but where it waited."""
        out, errors = self.processes[name].communicate(timeout=SECONDS)
        said = [line for line in errors.splitlines(keepends=True) if not line.startswith("qmpfilter: waits at ")]
        return self.processes[name].returncode, out, "".join(said)

    def report(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self._directory / name).read_text())
        return told

    def close(self) -> None:
        for end in self._open:
            end.close()
        for process in self.processes.values():
            process.kill()
            process.communicate()


def _port_listens(port: int) -> bool:
    """Without connecting: state 0A of proc_net_tcp is LISTEN."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture(params=["unix", "tcp", "tls"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Both]:
    kind = request.param
    between = f"pair:unix:{tmp_path / 'between'}" if kind == "unix" else f"pair:tcp:127.0.0.1:{free_port()}"
    made = Both(tmp_path, between)
    made_tls = (*TLS, "--pki", str(request.getfixturevalue("pki"))) if kind == "tls" else ()
    start = made.start
    made.start = lambda *more, **each: start(*made_tls, *more, **each)  # type: ignore[method-assign]  # with more arguments
    yield made
    made.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path, f"pair:unix:{tmp_path / 'between'}")
    yield made
    made.close()


def complete(both: Both) -> bytes:
    """A migration with an extra channel that ends well: what came to the destination."""
    both.wait_until_listening()
    source = both.dial()
    sender = sending(source, STREAM)
    destination = both.accept()
    start = exactly(destination, 4)
    extra = both.dial()
    extra.sendall(MULTIFD)
    arrived_extra = both.accept()
    assert exactly(arrived_extra, len(MULTIFD)) == MULTIFD
    arrived_extra.sendall(b"back")
    assert exactly(extra, 4) == b"back"
    start += exactly(destination, len(STREAM) - len(start))
    sender.join(SECONDS)
    source.shutdown(socket.SHUT_WR)
    rest = everything(destination)
    extra.shutdown(socket.SHUT_WR)
    assert everything(arrived_extra) == b""
    arrived_extra.close()
    destination.sendall(SHUT_OK)
    destination.close()
    assert everything(extra) == b""
    extra.close()
    assert everything(source) == SHUT_OK
    source.close()
    return start + rest


def test_a_migration(both: Both) -> None:
    both.start()
    arrived = complete(both)
    for name in ("source", "destination"):
        assert both.ended(name)[::2] == (0, "")
    source, destination = both.report("source"), both.report("destination")
    assert source["outcome"] == destination["outcome"] == "completed"
    assert source["channels"] == destination["channels"] == ["main", "multifd"]
    assert len(arrived) == len(STREAM)
    # What one has edited the other passes unchanged.
    assert (source["edited_vcpus"], destination["edited_vcpus"]) == (1, 0)
    assert source["tail_sha256"]["after"] == destination["tail_sha256"]["before"]
    assert destination["tail_sha256"]["before"] == destination["tail_sha256"]["after"]
    there, here = source["pair"]["destination"], destination["pair"]["source"]
    assert (there["version"], there["address"]) == (1, both.between)
    tls = "always" in both.processes["source"].args  # type: ignore[operator]  # a list
    assert (there["tls"] is not None, here["tls"] is not None) == (tls, tls)
    if tls:
        assert there["tls"]["version"] == "TLSv1.3"
        assert (there["tls"]["subject"], here["tls"]["subject"]) == ("O=qmpfilter,CN=server", "O=qmpfilter,CN=client")
    # The verdict was made with the facts of the destination's host.
    assert source["facts"] == destination["facts"]
    assert source["facts"]["kernel"] == "6.12.1"


def test_the_destination_takes_native_svm2_and_its_qemu_an_annex(plain: Both) -> None:
    plain.start(source=("--mode", "native"))
    arrived = complete(plain)
    for name in ("source", "destination"):
        assert plain.ended(name)[::2] == (0, "")
    source, destination = plain.report("source"), plain.report("destination")
    assert (source["edited_vcpus"], destination["edited_vcpus"]) == (1, 1)
    assert (source["vcpus"][0]["found"], destination["vcpus"][0]["found"]) == ("legacy", "native")
    assert len(arrived) == len(STREAM)


def refused(both: Both) -> tuple[int, dict[str, Any]]:
    """A migration of which no byte comes to the destination: the source's exit status and report."""
    both.wait_until_listening()
    source = both.dial()
    sender = sending(source, STREAM)
    heard = everything(source)
    sender.join(SECONDS)
    assert heard == b""
    status, _, errors = both.ended("source")
    assert errors == ""
    both.listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        both.listener.accept()
    return status, both.report("source")


def test_native_svm2_for_who_does_not_convert_it(plain: Both) -> None:
    plain.start(source=("--mode", "native"), destination=("--mode", "observe"))
    status, report = refused(plain)
    assert (status, report["outcome"]) == (EXIT_VETOED, "vetoed")
    assert "native svm2 goes only to a destination" in report["reason"]


def test_another_guest_than_expected(plain: Both) -> None:
    ours, other = (f"8d7a1d9f-6f4a-4a3c-9d7e-1f2a3b4c5d6{last}" for last in "ef")
    plain.start(source=("--domain", ours), destination=("--domain", other))
    status, report = refused(plain)
    assert (status, report["outcome"]) == (EXIT_VETOED, "vetoed")
    assert report["reason"] == f"the other filter refused: the guest {ours} was to come, and {other} is expected here"


def test_a_host_that_would_not_run_the_guest(both: Both) -> None:
    both.host(NO_NESTING)
    both.start()
    both.wait_until_listening()
    source = both.dial()
    sender = sending(source, STREAM)
    destination = both.accept()
    arrived = everything(destination)
    destination.close()
    assert everything(source) == SHUT_FAILED
    sender.join(SECONDS)
    source.close()
    assert both.ended("source")[0] == EXIT_VETOED
    # It was told why in the stream's place.
    assert both.ended("destination")[0] == EXIT_VETOED
    assert all("[no-nesting]" in both.report(name)["reason"] for name in ("source", "destination"))
    assert len(arrived) < len(STREAM)


@pytest.mark.parametrize("both", ["tcp", "tls"], indirect=True)
def test_strangers_end_nothing(both: Both) -> None:
    both.start()
    both.wait_until_listening()
    place = ("127.0.0.1", int(both.between.rpartition(":")[2]))
    with socket.create_connection(place) as silent, socket.create_connection(place) as half:
        half.sendall(MAGIC)
        for said in (b"QEVM\0\0\0\3", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\0\x05hello", MAGIC + b"\0\0\0\2[]"):
            with socket.create_connection(place, SECONDS) as stranger:
                stranger.sendall(said)
                everything(stranger)
        socket.create_connection(place).close()
        assert silent.fileno() >= 0
        complete(both)
    status, _, errors = both.ended("destination")
    assert status == 0
    assert "a connection of 127.0.0.1:" in errors


def test_certificates_that_are_not_there(plain: Both, tmp_path: Path) -> None:
    plain.between = "pair:tcp:127.0.0.1:0"
    plain.start_destination(*TLS, "--pki", str(tmp_path))
    status, _, errors = plain.ended("destination")
    assert status == 3
    assert errors == f"qmpfilter: TLS between filters needs {tmp_path}/CA/cacert.pem: No such file or directory\n"
