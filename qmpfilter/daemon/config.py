# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's configuration: TOML, every key with a default, nothing accepted that is not understood.

``FILE`` is read first, then ``FILE.d/*.toml`` in the order of their names; a later value replaces an earlier one.
``examples/qmpfilter.toml`` shows every key with its default.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from qmpfilter.cluster.address import Access, open_store
from qmpfilter.cluster.store import checked_key
from qmpfilter.daemon.logs import Form
from qmpfilter.errors import HostError, PolicyError
from qmpfilter.filter.policy import LOST_ANYWAY, Enforcement, Mode, Policy
from qmpfilter.relay.address import Address, UnixAddress, parse_address
from qmpfilter.relay.limits import LONGEST, Waits
from qmpfilter.relay.pair import Encryption, Pairing
from qmpfilter.verdict.facts import HostFacts
from qmpfilter.verdict.losses import LOSS_CODES

__all__ = ["DEFAULT", "Audit", "Cluster", "Config", "Expose", "Ingress", "Keep", "Watch", "checked", "load", "places"]

DEFAULT: Final = Path("/etc/qmpfilter/qmpfilter.toml")
"""Read if no other file is named; it may be missing."""

_MOST_SESSIONS: Final = 4096


@dataclass(frozen=True, slots=True)
class Keep:
    """Which reports of ended sessions are kept.

    :param days: younger ones
    :param count: the newest so many
    """

    days: float = 90.0
    count: int = 10000


@dataclass(frozen=True, slots=True)
class Audit:
    """The log of what was let go.

    :param enabled: there is one
    :param required: what cannot be recorded stays at its source
    """

    enabled: bool = True
    required: bool = False


@dataclass(frozen=True, slots=True)
class Ingress:
    """What is put before QEMUs that libvirt has wait for a migration.

    :param required: a migration that cannot be filtered here is refused
    :param addresses: where sources come when QEMU waits at a loopback address; none for all of this host
    :param nft: where it waits at others, rules of nftables bring them
    """

    required: bool = False
    addresses: tuple[str, ...] = ()
    nft: bool = False


@dataclass(frozen=True, slots=True)
class Expose:
    """Counters for Prometheus.

    :param listen: an address where HTTP is answered, None for none
    :param textfile: a file for node_exporter's textfile collector, None for none
    """

    listen: Address | None = None
    textfile: Path | None = None

    @property
    def wanted(self) -> bool:
        """Somebody is to read them."""
        return self.listen is not None or self.textfile is not None


@dataclass(frozen=True, slots=True)
class Watch:
    """The libvirt whose events are heard.

    :param uri: empty for none
    """

    uri: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What this host is in its cluster.

    :param store: address of what all hosts share, empty for a host on its own
    :param access: how the store is got at
    :param name: of this host; migrations that come to it are known by it
    :param ring: that it is in
    :param labels: by which canaries are chosen
    :param addresses: under which migrations come to it, besides its name
    :param facts: a file with this host's facts, None to look at the host
    :param lease: seconds after which it is forgotten when it says nothing
    :param stale: seconds for which it goes on with what it knew while the store is away
    """

    store: str = ""
    access: Access = field(default_factory=Access)
    name: str = field(default_factory=socket.gethostname)
    ring: str = "default"
    labels: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    facts: Path | None = None
    lease: float = 30.0
    stale: float = 600.0

    @property
    def wanted(self) -> bool:
        """This host is in a cluster."""
        return bool(self.store)


@dataclass(frozen=True, slots=True)
class Config:
    """What the daemon was told.

    :param runtime: control socket, lock, kill switch, and what running sessions write; on a file system in memory
    :param state: reports
    :param policy: of sessions whose starter asks for nothing else
    :param waits: deadlines of every session
    :param keep: which reports are kept
    :param audit: the log of what was let go
    :param ingress: what is put before QEMUs that libvirt has wait
    :param metrics: counters for Prometheus
    :param libvirt: whose events are heard
    :param cluster: the hosts that go together
    :param mode_named: the mode, where a file names one and it is not the default
    :param pairing: how filters on other hosts are met
    :param most_sessions: that run at once
    :param log: where the log goes
    :param drain: seconds for which running sessions are waited for after SIGTERM
    :param files: what was read
    """

    runtime: Path = Path("/run/qmpfilter")
    state: Path = Path("/var/lib/qmpfilter")
    policy: Policy = field(default_factory=Policy)
    waits: Waits = field(default_factory=Waits)
    keep: Keep = field(default_factory=Keep)
    audit: Audit = field(default_factory=Audit)
    ingress: Ingress = field(default_factory=Ingress)
    metrics: Expose = field(default_factory=Expose)
    libvirt: Watch = field(default_factory=Watch)
    cluster: Cluster = field(default_factory=Cluster)
    mode_named: Mode | None = None
    pairing: Pairing = field(default_factory=Pairing)
    most_sessions: int = 64
    log: Form = Form.AUTO
    drain: float = 30.0
    files: tuple[Path, ...] = ()

    @property
    def socket(self) -> Path:
        """Where the daemon is spoken to."""
        return self.runtime / "control.sock"

    @property
    def reports_directory(self) -> Path:
        """Where the reports of ended sessions are."""
        return self.state / "sessions"

    @property
    def audit_directory(self) -> Path:
        """Where the audit log is, if there is one."""
        return self.state / "audit"

    def records_directory(self, session: str) -> Path:
        """Where the svm2 records of a session's guest are kept."""
        return self.state / "records" / session

    @property
    def kill_switch(self) -> Path:
        """While this file exists, everything passes as it is."""
        return self.runtime / "off"


class _WrongError(Exception):
    """A value is not what its key asks for."""


def _absolute(value: Any) -> Path:
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise _WrongError("an absolute path")
    return Path(value)


def _address(value: Any) -> Address:
    try:
        address = parse_address(value if isinstance(value, str) else "")
    except HostError:
        raise _WrongError("an address, tcp:HOST:PORT or unix:PATH") from None
    if isinstance(address, UnixAddress):
        _absolute(address.path)
    return address


def _uri(value: Any) -> str:
    if not isinstance(value, str) or ":///" not in value:
        raise _WrongError("the URI of a libvirt on this host, as qemu:///system")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _WrongError("true or false")
    return value


def _codes(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(code, str) and code for code in value):
        raise _WrongError("a list of codes of losses")
    if not LOSS_CODES.issuperset(value):
        raise _WrongError(f"a list of codes of losses ({', '.join(sorted(LOSS_CODES))})")
    return frozenset(value)


def _hosts(value: Any) -> tuple[str, ...]:
    try:
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(str(ipaddress.ip_address(one)) for one in value)
    except ValueError:
        pass
    raise _WrongError("a list of IP addresses")


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _WrongError("a list of words")
    return tuple(_word(one) for one in value)


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value or "/" in value:
        raise _WrongError("a word of letters, digits and . _ : @ -")
    try:
        return checked_key(value)
    except HostError:
        raise _WrongError("a word of letters, digits and . _ : @ -") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _WrongError("a text")
    return value


def _one_of(kind: type[Mode] | type[Enforcement] | type[Form] | type[Encryption]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value not in [one.value for one in kind]:
            raise _WrongError(f"one of {', '.join(one.value for one in kind)}")
        return kind(value)

    return read


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LONGEST:
        raise _WrongError(f"seconds, more than 0 and at most {LONGEST:.0f}")
    return float(value)


def _span(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise _WrongError("a number that is 0 or more")
    return float(value)


def _count(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _WrongError(f"a whole number from {least} to {most}")
        return value

    return read


_KEYS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "runtime_directory": _absolute,
    "state_directory": _absolute,
    "mode": _one_of(Mode),
    "verdict": _one_of(Enforcement),
    "accept": _codes,
    "host": _absolute,
    "allow_no_return_path": _flag,
    "max_sessions": _count(1, _MOST_SESSIONS),
    "log": _one_of(Form),
    "drain": _span,
    **{f"deadlines.{one.name}": _seconds for one in fields(Waits)},
    "audit.enabled": _flag,
    "audit.required": _flag,
    "ingress.required": _flag,
    "ingress.addresses": _hosts,
    "ingress.nft": _flag,
    "metrics.listen": _address,
    "metrics.textfile": _absolute,
    "libvirt.uri": _uri,
    "cluster.store": _text,
    "cluster.ca": _absolute,
    "cluster.certificate": _absolute,
    "cluster.key": _absolute,
    "cluster.user": _text,
    "cluster.password_file": _absolute,
    "cluster.name": _word,
    "cluster.ring": _word,
    "cluster.labels": _words,
    "cluster.addresses": _words,
    "cluster.facts": _absolute,
    "cluster.lease": _seconds,
    "cluster.stale": _span,
    "pair.encryption": _one_of(Encryption),
    "pair.pki": _absolute,
    "reports.keep_days": _span,
    "reports.keep_count": _count(0, 1 << 31),
}
_TABLES: Final = frozenset(key.partition(".")[0] for key in _KEYS if "." in key)


def load(path: Path | None = None) -> Config:
    """The configuration of a file and of its drop-in directory.

    :param path: None for :data:`DEFAULT`, if there is one
    :raises HostError: a file cannot be read or holds what is not understood; says which file and which key
    """
    values: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    files = _files(path)
    for one in files:
        read = _read(one)
        values |= read
        origin |= dict.fromkeys(read, one)
    return Config(
        runtime=values.get("runtime_directory", Config().runtime),
        state=values.get("state_directory", Config().state),
        policy=_policy(values, origin),
        waits=Waits(**_of_table(values, "deadlines")),
        keep=Keep(**{name.removeprefix("keep_"): value for name, value in _of_table(values, "reports").items()}),
        audit=Audit(**_of_table(values, "audit")),
        ingress=Ingress(**_of_table(values, "ingress")),
        metrics=Expose(**_of_table(values, "metrics")),
        libvirt=Watch(**_of_table(values, "libvirt")),
        cluster=_cluster(values, origin),
        mode_named=values.get("mode"),
        pairing=Pairing(**_of_table(values, "pair")),
        most_sessions=values.get("max_sessions", Config().most_sessions),
        log=values.get("log", Config().log),
        drain=values.get("drain", Config().drain),
        files=tuple(files),
    )


def places() -> Config:
    """The directories of the default configuration, all else at its default: whatever is wrong elsewhere in it keeps
    nobody from the kill switch.

    :raises HostError: a file cannot be read, or its directories are none
    """
    found: dict[str, Path] = {}
    for file in _files(None):
        whole = _parsed(file)
        keys = ("runtime_directory", "state_directory")
        found |= {key: checked(str(file), key, whole[key]) for key in keys if key in whole}
    return Config(
        runtime=found.get("runtime_directory", Config().runtime), state=found.get("state_directory", Config().state)
    )


def _files(path: Path | None) -> list[Path]:
    file = path or DEFAULT
    # A file that was named has to be there.
    return [*([file] if path is not None or file.exists() else []), *sorted(Path(f"{file}.d").glob("*.toml"))]


def _read(path: Path) -> dict[str, Any]:
    """Checked values by full keys."""
    flat: dict[str, Any] = {}
    for name, value in _parsed(path).items():
        if name in _TABLES and isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return {key: checked(str(path), key, value) for key, value in flat.items()}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HostError(f"{path}: no TOML: {error}") from error


def checked(where: str, key: str, value: Any) -> Any:
    """A value as it is used, of a key that is written with its table: ``deadlines.tail``.

    :raises HostError: there is no such key, or it cannot have this value; begins with `where`
    """
    if key in _TABLES:
        raise HostError(f"{where}: {key}: expected a table, found {value!r}")
    if key not in _KEYS:
        raise HostError(f"{where}: {key}: no such key")
    try:
        return _KEYS[key](value)
    except _WrongError as wrong:
        raise HostError(f"{where}: {key}: expected {wrong}, found {value!r}") from None


def _of_table(values: Mapping[str, Any], table: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{table}.")}


def _cluster(values: Mapping[str, Any], origin: Mapping[str, Path]) -> Cluster:
    of_cluster = _of_table(values, "cluster")
    of_access = {one.name for one in fields(Access)}
    access = Access(**{name: value for name, value in of_cluster.items() if name in of_access})
    cluster = Cluster(access=access, **{name: value for name, value in of_cluster.items() if name not in of_access})
    if cluster.wanted:
        try:
            open_store(cluster.store, access).close()
        except HostError as error:
            raise HostError(f"{origin['cluster.store']}: cluster.store: {error}") from error
    if cluster.facts is not None:
        _facts("cluster.facts", values, origin)
    return cluster


def _facts(key: str, values: Mapping[str, Any], origin: Mapping[str, Path]) -> HostFacts:
    try:
        return HostFacts.from_json(values[key].read_bytes())
    except (HostError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise HostError(f"{origin[key]}: {key}: {values[key]}: {why}") from error


def _policy(values: Mapping[str, Any], origin: Mapping[str, Path]) -> Policy:
    facts = _facts("host", values, origin) if "host" in values else HostFacts()
    try:
        return Policy(
            mode=values.get("mode", Mode.ANNEX),
            enforcement=values.get("verdict", Enforcement.ENFORCE),
            facts=facts,
            accepted=LOST_ANYWAY | values.get("accept", frozenset()),
            without_return_path=values.get("allow_no_return_path", False),
        )
    except PolicyError as error:
        raise HostError(f"{origin['mode']}: mode: {error}") from error
