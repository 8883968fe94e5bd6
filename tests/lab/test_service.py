# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian package with a real systemd of two releases: installed, run as a service, upgraded, taken away."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmpfilter.daemon.nft import DROP_IN
from tests.helpers.migration import STREAM
from tests.lab.hosts import MID, OLD, Host
from tests.lab.systemd import NFTABLES, Systemd, build, dependencies, packages_of

pytestmark = pytest.mark.lab

SECONDS = 120.0
ROOT = Path(__file__).resolve().parents[2]
INSTALL = "DEBIAN_FRONTEND=noninteractive dpkg --install {}"
# Compiling them takes longer than all the rest.
INSTALL_OTHERS = (
    f"mount --bind /bin/true /usr/bin/py3compile; {INSTALL.format('python3-*.deb')}; umount /usr/bin/py3compile"
)
# Whoever asks the daemon now is answered by the next one.
NEXT = 'test "$(systemctl show -P MainPID qmpfilter)" != "$old"'
UNTIL = "until {}; do sleep 0.5; done"
PID = "old=$(systemctl show -P MainPID qmpfilter)"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A version and the next, by the names of their files."""
    built = [build(tmp_path_factory.mktemp(f"revision{revision}"), revision) for revision in (1, 2)]
    return {file.name: file.read_bytes() for file in built}


@pytest.fixture(scope="module", params=[OLD, MID], ids=lambda host: f"systemd-{host.name}")
def host(request: pytest.FixtureRequest, packages: dict[str, bytes]) -> Iterator[Systemd]:
    """A host with the first version installed."""
    given: Host = request.param
    with Systemd(given) as booted:
        first = dict([next(iter(packages.items()))])
        booted.run(["sh", "-ec", INSTALL_OTHERS], dependencies(given), SECONDS)
        booted.run(["sh", "-ec", INSTALL.format("qmpfilter_*.deb")], first, SECONDS)
        yield booted


def output(host: Systemd, command: str) -> str:
    """What the shell says to it."""
    return host.run(["sh", "-ec", command], {}, SECONDS).output


def state(host: Systemd, *names: str) -> list[str]:
    """What systemd says of the service."""
    properties = dict(
        line.split("=", 1)
        for line in output(host, f"systemctl show -p {','.join(names)} qmpfilter.service").splitlines()
    )
    return [properties[name] for name in names]


def carried(host: Systemd, command: str, **files: bytes) -> dict[str, Any]:
    """The report of a migration that completed, in the middle of which the command was run."""
    argv = ["env", "PYTHONPATH=/usr/lib/qmpfilter", "python3", "-m", "inhost.carried", "stream", command]
    told = host.run(argv, {"stream": STREAM, **files}, SECONDS).files["report.json"]
    report: dict[str, Any] = json.loads(told)
    assert (report["outcome"], report["edited_vcpus"]) == ("completed", 1)
    return report


def test_the_same_checkout_gives_the_same_package(packages: dict[str, bytes], tmp_path: Path) -> None:
    again = build(tmp_path, 1)
    assert again.read_bytes() == packages[again.name]
    subprocess.run(
        ["lintian", "--fail-on", "error,warning", "--suppress-tags", "initial-upload-closes-no-bugs", again],
        check=True, timeout=SECONDS,
    )  # fmt: skip


def test_it_runs_once_it_is_installed(host: Systemd) -> None:
    assert state(host, "ActiveState", "SubState", "StatusText") == ["active", "running", "waits for migrations"]
    assert output(host, "systemctl is-enabled qmpfilter.socket qmpfilter.service").split() == ["enabled"] * 2
    status = json.loads(output(host, "cd / && qmpfilter status --json"))
    assert [str(status["pid"])] == state(host, "MainPID")
    assert status["config"] == ["/etc/qmpfilter/qmpfilter.toml"]


def test_it_may_do_little(host: Systemd) -> None:
    """systemd's own measure, in tenths: 2.5 or better."""
    output(host, "systemd-analyze security --threshold=25 qmpfilter.service")


def test_reload(host: Systemd) -> None:
    output(host, "echo 'max_sessions = 3' >/etc/qmpfilter/qmpfilter.toml.d/test.toml; systemctl reload qmpfilter")
    assert json.loads(output(host, "qmpfilter status --json"))["max_sessions"] == 3
    output(host, "rm /etc/qmpfilter/qmpfilter.toml.d/test.toml; systemctl reload qmpfilter")


def test_a_daemon_that_hangs_is_replaced_and_its_migration_goes_on(host: Systemd) -> None:
    drop_in = "/run/systemd/system/qmpfilter.service.d"
    soon = f"mkdir -p {drop_in}; printf '[Service]\\nWatchdogSec=10\\n' >{drop_in}/test.conf; systemctl daemon-reload"
    output(host, f"{soon}; systemctl restart qmpfilter")
    carried(host, f"{PID}; kill -STOP $old; {UNTIL.format(NEXT)}")
    assert int(*state(host, "NRestarts")) > 0
    output(host, f"rm -r {drop_in}; systemctl daemon-reload; systemctl restart qmpfilter")


def test_a_stop_waits_and_leaves_what_still_runs_to_the_next(host: Systemd) -> None:
    # A second to wait.
    output(host, "echo 'drain = 1.0' >/etc/qmpfilter/qmpfilter.toml.d/test.toml; systemctl reload qmpfilter")
    report = carried(host, "systemctl stop qmpfilter.service; systemctl start qmpfilter.service")
    said = output(host, f"journalctl -o cat QMPFILTER_SESSION={report['session']}")
    assert "completed" in said, said
    assert "waiting up to 1 s for 1 sessions" in output(host, "journalctl -o cat -u qmpfilter.service")


def test_an_upgrade_cuts_no_migration(host: Systemd, packages: dict[str, bytes]) -> None:
    name, content = list(packages.items())[-1]
    carried(host, f"{PID}; {INSTALL.format(name)}; {NEXT}", **{name: content})
    assert name.split("_")[1] in output(host, "dpkg-query -W qmpfilter")
    assert state(host, "ActiveState") == ["active"]


def test_rules_of_nftables_take_their_drop_in(host: Systemd) -> None:
    def arrive() -> dict[str, Any]:
        argv = ["env", "PYTHONPATH=/usr/lib/qmpfilter", "python3", "-m", "inhost.redirected"]
        told: dict[str, Any] = json.loads(host.run(argv, {}, SECONDS).files["told.json"])
        return told

    configure = "printf '[ingress]\\nnft = true\\nrequired = true\\n' >/etc/qmpfilter/qmpfilter.toml.d/test.toml"
    host.run(["sh", "-ec", INSTALL.format("*.deb")], packages_of(host.host, NFTABLES), SECONDS)
    output(host, f"{configure}; systemctl reload qmpfilter")
    without = arrive()
    assert (DROP_IN in without["answer"]["veto"], without["rules"]) == (True, "")

    place = "/run/systemd/system/qmpfilter.service.d"
    # Started by hand so often in so short a time, it would be refused: of that reset-failed takes the count too.
    again = "systemctl daemon-reload; systemctl reset-failed qmpfilter; systemctl restart qmpfilter"
    drop_in = {"nft.conf": (ROOT / DROP_IN).read_bytes()}
    host.run(["sh", "-ec", f"mkdir -p {place}; cp nft.conf {place}; {again}"], drop_in, SECONDS)
    told = arrive()
    assert (told["answer"], "tproxy ip to :" in told["rules"]) == ({}, True)
    output(host, f"rm -r {place} /etc/qmpfilter/qmpfilter.toml.d/test.toml; {again}")


def test_nothing_was_forbidden_that_it_needs(host: Systemd) -> None:
    assert output(host, "journalctl -q -o cat -p err SYSLOG_IDENTIFIER=qmpfilter") == ""
    said = output(host, "journalctl -o cat -u qmpfilter.service")
    assert "Traceback" not in said, said


def test_purging_leaves_nothing(host: Systemd) -> None:
    output(host, "qmpfilter hooks install; qmpfilter hooks status")
    output(host, "dpkg --purge qmpfilter")
    assert output(host, "find / /run -xdev -name '*qmpfilter*'") == ""
