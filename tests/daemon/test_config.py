# SPDX-License-Identifier: GPL-2.0-or-later
"""What the configuration accepts, and how what it does not is told."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from qmpfilter.cluster.address import Access
from qmpfilter.daemon import config
from qmpfilter.daemon.config import Audit, Cluster, Config, Expose, Ingress, Keep, Watch, load, places
from qmpfilter.errors import HostError
from qmpfilter.filter.policy import LOST_ANYWAY, Enforcement, Mode
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.pair import Encryption, Pairing

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "qmpfilter.toml"


def write(directory: Path, text: str, **drop_ins: str) -> Path:
    path = directory / "q.toml"
    path.write_text(text)
    if drop_ins:
        (directory / "q.toml.d").mkdir()
    for name, more in drop_ins.items():
        (directory / "q.toml.d" / f"{name}.toml").write_text(more)
    return path


def test_the_example_shows_every_default(tmp_path: Path) -> None:
    lines = [
        line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line
        for line in EXAMPLE.read_text().splitlines()
    ]
    text = "\n".join(lines)
    facts = tmp_path / "host.json"
    facts.write_text('{"schema": "qmpfilter.host/1"}')
    # What is named there has to be there.
    here = text.replace("/etc/qmpfilter/host.json", str(facts)).replace("/etc/qmpfilter/this-host.json", str(facts))
    shown = load(write(tmp_path, here))
    defaults = load(write(tmp_path, ""))
    # What is off by default is shown with a value that makes sense.
    assert shown.metrics.wanted
    assert shown.libvirt.uri
    assert shown.cluster.wanted
    assert (shown.cluster.lease, shown.cluster.stale) == (Cluster().lease, Cluster().stale)
    assert replace(shown, metrics=Expose(), libvirt=Watch(), cluster=Cluster(), mode_named=None) == defaults
    assert (defaults.waits, defaults.keep, defaults.policy) == (Waits(), Keep(), Config().policy)
    flat = tomllib.loads(text)
    tables = {
        "deadlines": Waits, "reports": Keep, "audit": Audit, "ingress": Ingress, "metrics": Expose, "libvirt": Watch,
    }  # fmt: skip
    # Of a pair the guest's uuid is no matter of the configuration.
    assert set(flat.pop("pair")) == {one.name for one in fields(Pairing)} - {"domain"}
    assert len(flat) == 10 + len(tables) + 1
    assert {name: len(flat[name]) for name in tables} == {name: len(fields(kind)) for name, kind in tables.items()}
    of_cluster = {one.name for kind in (Cluster, Access) for one in fields(kind)} - {"access", "seconds"}
    assert flat["cluster"].keys() == of_cluster


def test_every_value(tmp_path: Path) -> None:
    facts = tmp_path / "host.json"
    facts.write_text(json.dumps({"schema": "qmpfilter.host/1", "formats": ["legacy", "annex", "svm2"]}))
    path = write(
        tmp_path,
        f"""
        runtime_directory = "/run/q"
        state_directory = "/srv/q"
        mode = "native"
        verdict = "warn"
        accept = ["l1-cet"]
        host = "{facts}"
        allow_no_return_path = true
        max_sessions = 3
        drain = 0
        [deadlines]
        tail = 1
        answer = 2.5
        [reports]
        keep_days = 0.5
        keep_count = 7
        """,
    )
    loaded = load(path)
    assert (loaded.runtime, loaded.state, loaded.files) == (Path("/run/q"), Path("/srv/q"), (path,))
    assert (loaded.socket, loaded.kill_switch) == (Path("/run/q/control.sock"), Path("/run/q/off"))
    policy = loaded.policy
    assert (policy.mode, policy.enforcement, policy.without_return_path) == (Mode.NATIVE, Enforcement.WARN, True)
    assert policy.accepted == LOST_ANYWAY | {"l1-cet"}
    assert (loaded.most_sessions, loaded.drain) == (3, 0.0)
    assert (loaded.waits, loaded.keep) == (Waits(tail=1, answer=2.5), Keep(0.5, 7))


def test_drop_ins_come_later_in_the_order_of_their_names(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'mode = "legacy"\nverdict = "off"\n[deadlines]\ntail = 1\nidle = 1',
        b='mode = "off"\n[deadlines]\ntail = 3',
        a='mode = "observe"\n[deadlines]\ntail = 2',
    )
    (tmp_path / "q.toml.d" / "c.toml.orig").write_text("no TOML")
    loaded = load(path)
    assert (loaded.policy.mode, loaded.policy.enforcement) == (Mode.OFF, Enforcement.OFF)
    assert loaded.waits == Waits(tail=3, idle=1)
    assert [file.name for file in loaded.files] == ["q.toml", "a.toml", "b.toml"]


def test_plain_tcp_between_hosts_takes_words(tmp_path: Path) -> None:
    text = "[pair]\nencryption = \"never: guests' memory passes unencrypted\"\npki = '/a/pki'\n"
    assert load(write(tmp_path, text)).pairing == Pairing(Encryption.NEVER, Path("/a/pki"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lunch = 1", "q.toml: lunch: no such key"),
        ("[deadlines]\nlunch = 1", "q.toml: deadlines.lunch: no such key"),
        ("[lunch]", "q.toml: lunch: no such key"),
        ("deadlines = 3", "q.toml: deadlines: expected a table, found 3"),
        ("mode = 3", "q.toml: mode: expected one of off, observe, annex, legacy, native, found 3"),
        ('mode = "Annex"', "q.toml: mode: expected one of"),
        ('verdict = "hard"', "q.toml: verdict: expected one of enforce, warn, off, found 'hard'"),
        ('runtime_directory = "run"', "q.toml: runtime_directory: expected an absolute path, found 'run'"),
        (
            "[pair]\nencryption = 'never'",
            "q.toml: pair.encryption: expected one of auto, always, never: guests' memory",
        ),
        ("[pair]\npki = 'pki'", "q.toml: pair.pki: expected an absolute path"),
        ("accept = 'x'", "q.toml: accept: expected a list of codes of losses, found 'x'"),
        ("accept = ['nosuch']", "q.toml: accept: expected a list of codes of losses (cet-missing, "),
        ("accept = [1]", "q.toml: accept: expected a list of codes"),
        ("allow_no_return_path = 1", "q.toml: allow_no_return_path: expected true or false, found 1"),
        ("max_sessions = 0", "q.toml: max_sessions: expected a whole number from 1 to 4096, found 0"),
        ("max_sessions = true", "q.toml: max_sessions: expected a whole number"),
        ("drain = -1", "q.toml: drain: expected a number that is 0 or more, found -1"),
        ("drain = inf", "q.toml: drain: expected a number"),
        ("drain = nan", "q.toml: drain: expected a number"),
        ("[deadlines]\ntail = 0", "q.toml: deadlines.tail: expected seconds, more than 0"),
        (
            "[deadlines]\nsource = 2073601",
            "q.toml: deadlines.source: expected seconds, more than 0 and at most 2073600",
        ),
        ("[deadlines]\ntail = 1e12", "q.toml: deadlines.tail: expected seconds"),
        ("[deadlines]\ntail = true", "q.toml: deadlines.tail: expected seconds"),
        ("[reports]\nkeep_count = 1.5", "q.toml: reports.keep_count: expected a whole number"),
        ('mode = "native"', "q.toml: mode: native svm2 goes only to a destination whose facts announce it"),
        ('host = "/nowhere/host.json"', "q.toml: host: /nowhere/host.json: No such file or directory"),
        ('host = "/dev/null"', "q.toml: host: /dev/null: not a file of host facts"),
        ("[cluster]\nstore = 'foo'", "q.toml: cluster.store: 'foo' is no address of a store: dir:/path or etcd"),
        ("[cluster]\nstore = 'dir:relative'", "q.toml: cluster.store: 'dir:relative' is no address of a store"),
        ("[cluster]\nstore = 'etcd:foo'", "q.toml: cluster.store: 'etcd:foo' is no address of a store"),
        ("[cluster]\nfacts = '/nowhere/host.json'", "q.toml: cluster.facts: /nowhere/host.json: No such file"),
        ("[cluster]\nfacts = '/dev/null'", "q.toml: cluster.facts: /dev/null: not a file of host facts"),
        ("mode = ", "q.toml: no TOML"),
        ("mode = 'annex'\nmode = 'annex'", "q.toml: no TOML"),
    ],
)
def test_what_is_not_understood(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(HostError) as error:
        load(write(tmp_path, text))
    assert said in str(error.value)


def test_a_drop_in_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"q\.toml\.d/x\.toml: mode: expected one of"):
        load(write(tmp_path, "", x="mode = false"))


def test_places_are_those_of_the_default_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT", tmp_path / "q.toml")
    assert places() == Config()
    # What is wrong elsewhere is no matter of theirs.
    write(tmp_path, 'runtime_directory = "/a"\nlunch = 1', more='state_directory = "/b"\nmode = "no"')
    assert (places().kill_switch, places().reports_directory) == (Path("/a/off"), Path("/b/sessions"))
    (tmp_path / "q.toml").write_text('runtime_directory = "a"')
    with pytest.raises(HostError, match=r"q\.toml: runtime_directory: expected an absolute path"):
        places()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        load(tmp_path / "missing.toml")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "q.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(HostError, match=r"q\.toml: no TOML"):
        load(path)
